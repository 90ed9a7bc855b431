# SPDX-License-Identifier: MIT
"""The zygote alone: it imports ahead of time without keeping anybody waiting, and survives what can not be imported."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lab.errors import ProcessFailed
from lab.realise import zygote
from lab.realise.process import Process, Processes
from tests.lab.realise.labs import eventually


def with_zygote(preload: list[str], talk: Callable[[Processes], Awaitable[None]]) -> None:
    """Runs `talk` with a fresh zygote, and waits for the zygote's end afterwards."""
    pid, sock = zygote.start(preload)

    async def live() -> None:
        await talk(Processes(sock))

    try:
        asyncio.run(live())
    finally:
        sock.close()
        eventually(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, "the zygote does not end")


async def start(processes: Processes, out: int, *argv: str, module: str | None = None) -> Process:
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        return await processes.start(
            None, "test", module=module, argv=argv, env={"PATH": os.environ["PATH"]}, cwd="/",
            stdio=(nothing, out, nothing), netns=None,
        )  # fmt: skip
    finally:
        os.close(nothing)


def test_requests_go_before_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / f"slow_module_{number}.py").write_text("import time; time.sleep(0.2)\n")
    (tmp_path / "leaving_module.py").write_text("import sys; sys.exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    preload = ["slow_module_0", "no_such_module", "leaving_module", *(f"slow_module_{n}" for n in range(1, 5))]
    took: list[float] = []

    async def talk(processes: Processes) -> None:
        begun = time.monotonic()
        process = await start(processes, 1, "true")
        assert await process.wait(10) == 0
        took.append(time.monotonic() - begun)

    with_zygote(preload, talk)
    assert took[0] < 0.8, "a request waited for imports that it did not need"


def test_descriptors_end_where_they_are_expected() -> None:
    async def talk(processes: Processes) -> None:
        read, write = os.pipe()
        extra_read, extra_write = os.pipe()
        os.write(extra_write, b"three")
        os.close(extra_write)
        nothing = os.open(os.devnull, os.O_RDWR)
        process = await processes.start(
            None, "test", module="tests.lab.realise.sample", argv=["fd"], env={}, cwd="/",
            stdio=(nothing, write, nothing), netns=None, extra=[extra_read],
        )  # fmt: skip
        os.close(write)
        assert await process.wait(10) == 0
        assert os.read(read, 100) == b"three\n"
        for fd in (read, extra_read, nothing):
            os.close(fd)

    with_zygote([], talk)


def test_program_inherits_three_descriptors_and_no_more() -> None:
    async def talk(processes: Processes) -> None:
        read, write = os.pipe()
        process = await start(processes, write, "sh", "-c", "ls /proc/$$/fd")
        os.close(write)
        assert await process.wait(10) == 0
        assert os.read(read, 1000).split() == [b"0", b"1", b"2"]
        os.close(read)

    with_zygote([], talk)


def test_pid_and_mount_namespace_of_its_own() -> None:
    if os.geteuid() != 0:
        pytest.skip("outside a lab only root may make a pid namespace")

    async def talk(processes: Processes) -> None:
        read, write = os.pipe()
        nothing = os.open(os.devnull, os.O_RDWR)
        process = await processes.start(
            None, "test", module="tests.lab.realise.sample", argv=["pid"], env={}, cwd="/",
            stdio=(nothing, write, nothing), netns=None, own_pids=True,
        )  # fmt: skip
        os.close(write)
        assert os.read(read, 100) == b"1 1\n"  # process 1, and alone
        process.send_signal(9)
        assert await process.wait(10) == 137
        assert os.read(read, 100) == b""  # the inner process has gone with the outer one
        for fd in (read, nothing):
            os.close(fd)

    with_zygote([], talk)


def test_end_of_the_zygote_is_noticed() -> None:
    async def talk(processes: Processes) -> None:
        process = await start(processes, 1, "sh", "-c", "kill -9 $PPID; sleep 100")
        async with asyncio.timeout(10):
            await processes.zygote_ended
        assert process.code == 137
        with pytest.raises(ProcessFailed, match="the zygote"):
            await start(processes, 1, "true")

    with_zygote([], talk)
