# SPDX-License-Identifier: MIT
"""Tools from end to end: guest's daemon, RPCI, the hypervisor, and a vCenter that comes late and starts anew."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.core import fabric
from fakes.core.fabric import FabricError
from fakes.tools import daemon, machine, reporter, rpci
from fakes.tools.machine import ToolsMachine
from fakes.tools.reporter import Reporter
from fakes.tools.rpci import RpciClient, RpciError


class VCenter:
    """What `vcenter.sock` was told; refuses while `refuse` is set."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.refuse = False
        self.refused = 0
        self._server: asyncio.Server | None = None

    async def start(self, folder: Path) -> None:
        self._server = await fabric.serve(folder / "vcenter.sock", self._handle)

    async def _handle(self, method: str, params: dict[str, Any]) -> None:
        assert method == "tools.report"
        if self.refuse:
            self.refused += 1
            raise FabricError("not-found", "no such VM yet")
        self.reports.append(params)

    async def expect(self, count: int) -> dict[str, Any]:
        await until(lambda: len(self.reports) >= count)
        return self.reports[-1]


async def until(condition: Callable[[], bool], deadline: float = 15.0) -> None:
    """Polls; fails at the deadline."""
    for _ in range(int(deadline / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not in time")


def _python(code: str, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)


async def _guest_says(path: Path, *requests: str) -> None:
    client = RpciClient(path)
    for request in requests:
        await asyncio.to_thread(client.ask, request)
    client.close()


def test_reports_reach_a_vcenter_that_comes_late(tmp_path: Path) -> None:
    async def scene() -> None:
        tools, centre = ToolsMachine(), VCenter()
        server = await rpci.serve(tmp_path / "rpci.sock", tools.handle)
        report = asyncio.create_task(Reporter(tmp_path, tools, vm="lin", family="linuxGuest").run())
        await _guest_says(
            tmp_path / "rpci.sock",
            "tools.set.versiontype 12352 4",
            "info-set guestinfo.hostname lin",
            "info-set guestinfo.ip 10.0.0.5",
            "info-set guestinfo.addresses 10.0.0.5 10.0.1.5",
        )
        centre.refuse = True
        await centre.start(tmp_path)
        await until(lambda: centre.refused > 0)
        centre.refuse = False
        first = await centre.expect(1)
        assert (first["vm"], first["running"], first["hostname"]) == ("lin", True, "lin")
        assert first["addresses"] == ["10.0.0.5", "10.0.1.5"] and first["family"] == "linuxGuest"
        await _guest_says(tmp_path / "rpci.sock", "info-set guestinfo.addresses 10.0.0.6")
        assert (await centre.expect(2))["addresses"] == ["10.0.0.6"]
        report.cancel()
        server.close()

    asyncio.run(scene())


def test_a_new_vcenter_is_told_again(tmp_path: Path) -> None:
    """A vCenter in a process of its own is killed and comes back: its first report must not wait for a change."""
    server_code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom fakes.core import fabric\n"
        "async def handle(method, params): print(params['addresses'], flush=True)\n"
        "async def main():\n await fabric.serve(Path(sys.argv[1]), handle); await asyncio.sleep(60)\nasyncio.run(main())"
    )
    path = tmp_path / "vcenter.sock"

    async def scene() -> None:
        tools = ToolsMachine()
        for text in ("info-set guestinfo.hostname lin", "info-set guestinfo.addresses 10.0.0.5"):
            await tools.handle(text)
        report = asyncio.create_task(Reporter(tmp_path, tools, vm="lin", family="linuxGuest").run())
        for _ in range(2):
            with _python(server_code, path) as process:
                assert process.stdout is not None
                line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 15)
                assert line == b"['10.0.0.5']\n"
                process.kill()
        report.cancel()

    asyncio.run(scene())


def test_the_report_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "REFRESH", 0.05)

    async def scene() -> None:
        tools, centre = ToolsMachine(), VCenter()
        await tools.handle("info-set guestinfo.addresses 10.0.0.5")
        await centre.start(tmp_path)
        report = asyncio.create_task(Reporter(tmp_path, tools, vm="lin", family="linuxGuest").run())
        await centre.expect(4)
        report.cancel()

    asyncio.run(scene())


def test_silence_means_not_running(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        tools = ToolsMachine()
        assert not tools.state.running
        await tools.handle("info-set guestinfo.addresses 10.0.0.5")
        assert tools.state.report("lin", "linuxGuest")["addresses"] == ["10.0.0.5"]
        monkeypatch.setattr(machine, "SILENCE", 0.0)
        assert tools.state.report("lin", "linuxGuest")["addresses"] == []
        assert not tools.state.running

    asyncio.run(scene())


def test_the_daemon_reports_its_own_addresses(tmp_path: Path) -> None:
    async def scene() -> None:
        tools = ToolsMachine()
        server = await rpci.serve(tmp_path / "rpci.sock", tools.handle)
        code = "import sys\nfrom pathlib import Path\nfrom fakes.tools import daemon\ndaemon.run(Path(sys.argv[1]), '10.0.0.5', 0.1)"
        with _python(code, tmp_path / "rpci.sock") as process:
            await until(lambda: tools.state.running)
            process.terminate()
            assert process.wait(10) == 0
        assert tools.state.running and tools.state.hostname == socket.gethostname()
        assert tools.state.addresses == sorted(daemon.addresses(), key=lambda a: a != "10.0.0.5")
        server.close()

    asyncio.run(scene())


def test_unknown_commands_are_refused(tmp_path: Path) -> None:
    async def scene() -> None:
        server = await rpci.serve(tmp_path / "rpci.sock", ToolsMachine().handle)
        client = RpciClient(tmp_path / "rpci.sock")
        with pytest.raises(RpciError, match="Unknown command"):
            await asyncio.to_thread(client.ask, "machine.id.get")
        assert await asyncio.to_thread(client.ask, "log hello") == ""  # the connection goes on
        client.close()
        server.close()

    asyncio.run(scene())
    with pytest.raises(RpciError) as caught:
        RpciClient(tmp_path / "gone.sock").ask("log x")
    assert caught.value.unavailable


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(st.one_of(st.binary(max_size=40), st.just(b"RPCI"), st.just(struct.pack("<I", 3))), max_size=6))
def test_rpci_survives_anything(tmp_path: Path, data: list[bytes]) -> None:
    async def scene() -> None:
        server = await rpci.serve(tmp_path / "rpci.sock", ToolsMachine().handle)
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "rpci.sock"))
        writer.write(b"".join(data))
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await _guest_says(tmp_path / "rpci.sock", "log still here")
        server.close()

    asyncio.run(scene())
