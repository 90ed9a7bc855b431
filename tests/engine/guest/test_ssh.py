# SPDX-License-Identifier: MIT
"""The SSH channel against a real OpenSSH server started by the test on a loopback port, as root into this machine's /run."""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engine.dialer import Dialer
from engine.errors import ConnectRefused, ConnectTimedOut, VadplabError
from engine.events import EventLog
from engine.guest.channel import Scripts
from engine.guest.errors import (
    GuestLoginRefused,
    HostKeyMismatch,
    ScriptFailed,
    ScriptTimedOut,
    SshFailed,
)
from engine.guest.ssh import Account, SshChannel, interpreter
from tests.engine.waiting import until

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(SSHD is None, reason="openssh-server is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: scripts are uploaded to /run"),
]


@dataclass(frozen=True)
class Guest:
    """A running SSH server: port, keys, and a folder where the scripts leave traces."""

    port: int
    private_key: str
    host_key: str
    folder: Path


def _keygen(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    host_key = _keygen(tmp_path / "host")
    public = _keygen(tmp_path / "user")
    (tmp_path / "authorized").write_text(public + "\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (tmp_path / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f"PidFile {tmp_path}/pid\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    assert SSHD is not None
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(tmp_path / "config")], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield Guest(port, (tmp_path / "user").read_text(), host_key, tmp_path)
    finally:
        process.terminate()
        process.wait(10)


def channel(
    guest: Guest, pre: str, post: str, *, timeout: float = 10, thaw_after: int = 30, **account: object
) -> tuple[SshChannel, Path]:
    session = f"test-{uuid.uuid4().hex[:12]}"
    who = Account(getpass.getuser(), private_key=guest.private_key, host_key=guest.host_key, port=guest.port)
    who = replace(who, **account)  # type: ignore[arg-type]
    made = SshChannel(
        Dialer(EventLog(guest.folder / "events", host="backup-server", process="test")),
        target="linux-vm",
        address="127.0.0.1",
        account=who,
        session=session,
        scripts=Scripts(pre.encode(), post.encode(), timeout, thaw_after),
    )
    return made, Path(f"/run/vadplab-{session}")


def test_scripts_run_in_order_and_nothing_stays(guest: Guest) -> None:
    log = guest.folder / "log"

    async def main() -> None:
        ssh, folder = channel(guest, f"#!/bin/sh\necho pre >> {log}\necho hello\n", f"#!/bin/sh\necho post >> {log}\n")
        await ssh.prepare()
        assert ssh.host_key == guest.host_key
        assert {p.name for p in folder.iterdir()} == {"pre-freeze", "post-thaw"}
        assert not log.exists()
        result = await ssh.freeze()
        assert (result.exit_code, result.output, log.read_text()) == (0, "hello", "pre\n")
        assert (folder / "watchdog").exists()
        pid = int((folder / "watchdog").read_text())
        await ssh.thaw()
        assert log.read_text() == "pre\npost\n"
        await ssh.close()
        assert not folder.exists()
        with pytest.raises(ProcessLookupError):
            for _ in range(200):
                os.killpg(pid, 0)
                await asyncio.sleep(0.01)

    asyncio.run(main())
    events = (guest.folder / "events").read_text()
    assert '"step":"13"' in events and '"kind":"use"' in events


def test_script_failures_are_told_apart(guest: Guest) -> None:
    async def main() -> None:
        cases: list[tuple[str, type[VadplabError], str]] = [
            ("#!/bin/sh\nexit 3\n", ScriptFailed, "exit code 3"),
            ("#!/bin/sh\necho oops >&2\n", ScriptFailed, "standard error"),
            ("#!/bin/sh\nexec sleep 30\n", ScriptTimedOut, "timed out"),
        ]
        for body, kind, text in cases:
            ssh, folder = channel(guest, body, "#!/bin/sh\ntrue\n", timeout=1)
            await ssh.prepare()
            with pytest.raises(kind, match=text) as caught:
                await ssh.freeze()
            assert (caught.value.step, caught.value.target) == ("13", "linux-vm")
            if kind is ScriptTimedOut:
                with pytest.raises(ProcessLookupError):
                    os.killpg(int((folder / "pre-freeze.pid").read_text()), 0)
            await ssh.thaw()
            await ssh.close()
            assert not folder.exists()

    asyncio.run(main())


def test_script_that_still_runs_ends_before_the_thaw(guest: Guest) -> None:
    """The engine gives up in the middle of a freeze (stopped, or dead): the script may not freeze after the thaw."""
    log = guest.folder / "log"
    pre = f"#!/bin/sh\ntrap 'echo undone >> {log}; exit 1' TERM\necho begun >> {log}\nsleep 30 & wait\necho frozen >> {log}\n"

    async def main() -> None:
        for way in ("stopped", "dead"):
            log.unlink(missing_ok=True)
            ssh, folder = channel(guest, pre, f"#!/bin/sh\necho thawed >> {log}\n")
            await ssh.prepare()
            freezing = asyncio.create_task(ssh.freeze())
            await until(log.exists)
            if way == "dead":
                await ssh._drop()
                with pytest.raises(VadplabError):
                    await freezing
                leftover, _ = channel(guest, "", "")
                leftover._folder = str(folder)
                assert await leftover.thaw_leftover() is True
            else:
                freezing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await freezing
                await ssh.thaw()
                await ssh.close()
            assert log.read_text() == "begun\nundone\nthawed\n"

    asyncio.run(main())


def test_guest_thaws_itself_when_left_alone(guest: Guest) -> None:
    log = guest.folder / "log"

    async def main() -> None:
        ssh, folder = channel(guest, "#!/bin/sh\ntrue\n", f"#!/bin/sh\necho thawed > {log}\n", thaw_after=1)
        await ssh.prepare()
        await ssh.freeze()
        await ssh._drop()  # the engine is gone
        for _ in range(500):
            if log.exists():
                break
            await asyncio.sleep(0.01)
        assert log.read_text() == "thawed\n"
        leftover, _ = channel(guest, "", "")
        leftover._folder = str(folder)
        assert await leftover.thaw_leftover() is True
        assert not folder.exists()
        assert await leftover.thaw_leftover() is False

    asyncio.run(main())


def test_thaw_reconnects_when_the_channel_was_lost(guest: Guest) -> None:
    log = guest.folder / "log"

    async def main() -> None:
        ssh, _ = channel(guest, "#!/bin/sh\ntrue\n", f"#!/bin/sh\necho thawed >> {log}\n")
        await ssh.prepare()
        await ssh.freeze()
        assert ssh._connection is not None
        ssh._connection.abort()
        await ssh.thaw()
        await ssh.thaw()
        assert log.read_text() == "thawed\nthawed\n"
        await ssh.close()

    asyncio.run(main())


def test_symptoms_of_the_path(guest: Guest) -> None:
    other = _keygen(guest.folder / "other")

    async def main() -> None:
        cases: list[tuple[type[VadplabError], dict[str, object]]] = [
            (HostKeyMismatch, {"host_key": other}),
            (GuestLoginRefused, {"private_key": (guest.folder / "other").read_text()}),
            (GuestLoginRefused, {"private_key": None, "password": "wrong"}),
        ]
        for kind, account in cases:
            ssh, _ = channel(guest, "", "", **account)
            with pytest.raises(kind) as caught:
                await ssh.prepare()
            assert (caught.value.step, caught.value.port) == ("13", guest.port)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            ssh, _ = channel(guest, "", "", port=silent.getsockname()[1])
            task = asyncio.create_task(ssh.prepare())
            peer, _address = await asyncio.to_thread(silent.accept)
            peer.close()
            with pytest.raises((SshFailed, ConnectTimedOut)):
                await task
            port = silent.getsockname()[1]
        ssh, _ = channel(guest, "", "", port=port)
        with pytest.raises(ConnectRefused):
            await ssh.prepare()

    asyncio.run(main())


def test_interpreter_is_the_first_lines() -> None:
    assert interpreter(b"#!/bin/sh\ntrue\n") == "/bin/sh"
    assert interpreter(b"#! /usr/bin/env python3\n") == "/usr/bin/env python3"
    assert interpreter(b"") == interpreter(b"true\n") == interpreter(b"#!\n") == "/bin/sh"
