# SPDX-License-Identifier: MIT
"""The vCenter connection against the stock simulator (vcsim), where one can be had without building it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.dialer import Dialer
from engine.errors import AuthenticationFailed, ConnectRefused, ThumbprintMismatch
from engine.events import EventLog
from engine.vsphere import ObjectNotFound, VSphere, VSphereFault, thumbprint_matches
from fakes.vcenter import source

USER, PASSWORD = "administrator", "S3cret-of-the-vCenter"


@dataclass(frozen=True)
class Simulator:
    """A running vcsim: its port, and the events that connections to it wrote."""

    port: int
    events: Path

    def login(self, **changes: Any) -> VSphere:
        """A session, as a manager opens it in step 8."""
        fields: dict[str, Any] = {
            "name": "vcenter", "address": "127.0.0.1", "port": self.port, "thumbprint": None, "username": USER,
            "password": PASSWORD, "step": "8",
        }  # fmt: skip
        dialer = Dialer(EventLog(self.events, host="backup-server", process="test"))
        return VSphere.login(dialer, **(fields | changes))

    def seen(self, kind: str) -> list[str | None]:
        """Steps of the events of a kind."""
        lines = self.events.read_text().splitlines()
        return [e["step"] for e in map(json.loads, lines) if e["kind"] == kind]


@pytest.fixture(scope="module")
def binary() -> Path:
    for spec in ("path", "built"):
        try:
            if spec == "built" and not list(source.default_cache().glob("vcsim-*/vcsim")):
                continue
            found = source.locate(spec, source.default_cache())
        except Exception:  # noqa: S112
            continue
        if found.executable is not None:
            return found.executable
    pytest.skip("no vcsim on PATH or in the cache (`make setup` builds it)")


@pytest.fixture
def simulator(binary: Path, tmp_path: Path) -> Iterator[Simulator]:
    with (tmp_path / "address").open("w+") as said:
        process = subprocess.Popen(
            [str(binary), "-l", "127.0.0.1:0", "-api-version", "8.0.3.0", "-username", USER, "-password", PASSWORD, "-vm", "2"],
            stdout=said, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
        try:
            yield Simulator(_port(process), tmp_path / "events")
        finally:
            process.kill()
            process.wait(10)


def _port(process: subprocess.Popen[bytes]) -> int:
    """The port on which the process listens, from the kernel's tables."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        inodes = set()
        for fd in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                inodes.add(str(fd.readlink()))
            except OSError:
                continue
        for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                return int(fields[1].split(":")[1], 16)
        time.sleep(0.02)
    raise TimeoutError("vcsim does not listen")


def test_inventory_and_snapshots_by_mark(simulator: Simulator) -> None:
    session = simulator.login()
    try:
        vms = session.vms(step="8")
        assert len(vms) == 4 and [v.name for v in vms] == sorted(v.name for v in vms)
        vm = session.find_vm(vms[1].name, step="8")
        assert vm.disks[0].capacity == 10 << 30 and vm.disks[0].path.startswith("[LocalDS_0]")
        assert vm.vmx.endswith(".vmx") and vm.host and vm.powered_on and not vm.guest.tools_running
        with pytest.raises(ObjectNotFound) as caught:
            session.find_vm("nobody", step="8")
        assert (caught.value.step, caught.value.target) == ("8", "vcenter")
        made = session.create_snapshot(vm.moref, "name", "text; mark-1;", step="15", timeout=20)
        session.create_snapshot(vm.moref, "other", "a user's", step="15", timeout=20)
        assert [s.moref for s in session.own_snapshots("mark-1;", step="22")] == [made.moref]
        assert session.own_snapshots("mark-1;", step="22", vm_name=vms[0].name) == []
        session.remove_snapshot(made.moref, step="22", timeout=20)
        session.remove_snapshot(made.moref, step="22", timeout=20)  # gone already: fine
        assert session.own_snapshots("mark-1;", step="22") == []
        assert [s.name for s in session.snapshots(vm.moref, step="22")] == ["other"]
        with pytest.raises(VSphereFault):
            session.create_snapshot("vm-0", "n", "d", step="15", timeout=20)
    finally:
        session.logout()
    assert simulator.seen("attempt") == ["8"] and simulator.seen("use") == ["15", "22"]
    assert PASSWORD not in simulator.events.read_text()


def test_connection_and_session_that_are_gone_are_made_anew(simulator: Simulator) -> None:
    session, other = simulator.login(), simulator.login()
    try:
        assert session.stub.pool
        session.stub.pool[0][0].sock.shutdown(2)
        assert session.vms(step="22", names=[]) == []
        assert simulator.seen("attempt") == ["8", "8", "22"]
        manager = other.content.sessionManager
        keys = [s.key for s in manager.sessionList if s.key != manager.currentSession.key]
        manager.TerminateSession(sessionId=keys)
        assert len(session.vms(step="22")) == 4
    finally:
        session.logout()
        other.logout()


def test_certificate_and_account_are_checked(simulator: Simulator) -> None:
    session = simulator.login()
    sha256 = session.seen_thumbprint
    certificate = session.stub.pool[0][0].sock.getpeercert(True)
    session.logout()
    assert sha256 is not None and thumbprint_matches(sha256.upper(), certificate)
    simulator.login(thumbprint=":".join(sha256[i : i + 2] for i in range(0, 64, 2))).logout()
    with pytest.raises(ThumbprintMismatch) as mismatch:
        simulator.login(thumbprint="00" * 20)
    assert (mismatch.value.step, mismatch.value.host) == ("8", "backup-server")
    with pytest.raises(AuthenticationFailed) as refused:
        simulator.login(password="wrong-S3cret")
    assert "S3cret" not in str(refused.value.to_dict())
    assert not thumbprint_matches("", certificate)


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ConnectRefused) as caught:
        Simulator(port, tmp_path / "events").login()
    assert caught.value.message == f"backup-server to vcenter:{port}: refused"
