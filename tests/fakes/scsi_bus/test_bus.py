# SPDX-License-Identifier: MIT
"""A bus as a process: disks appear, are read, vanish, and nothing stays when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.core.fabric import FabricClient, FabricError
from fakes.scsi_bus.device import hex_of
from tests.fakes.storage.conftest import ROOT, StorageProcess, first_line
from tests.fakes.storage.conftest import start as start
from tests.fakes.storage.conftest import storage as storage
from tests.fakes.storage.conftest import tmp_path as tmp_path

MIB = 1 << 20
UUID = "6000C290-1122-3344-5566-778899aabbcc"
NAME = "wwn-0x6000c290112233445566778899aabbcc"
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse"),
]


class BusProcess:
    """A running bus of `proxy-2` beside a storage."""

    def __init__(self, home: StorageProcess, devices: Path) -> None:
        self.storage, self.devices = home, devices
        self.process: subprocess.Popen[bytes] | None = None
        self.client = FabricClient(home.fabric / "bus-proxy-2.sock")

    def start(self) -> None:
        command = [sys.executable, "-m", "fakes.scsi_bus", "--vm", "proxy-2"]
        command += ["--fabric", str(self.storage.fabric), "--devices", str(self.devices)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert json.loads(first_line(self.process))["ready"] == "bus"

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process
        self.client.close()
        self.process.send_signal(number)
        code = self.process.wait(20)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
        self.process = None
        return code

    def plug(self, export: str, size: int, **more: Any) -> dict[str, Any]:
        socket = str(self.storage.fabric / "nbd-datastore1.sock")
        values = {"uuid": UUID, "export": export, "socket": socket, "size": size, **more}
        shown: dict[str, Any] = self.client.call("disk.plug", **values)
        return shown

    def mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if str(self.devices) in line]


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Polls for something true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)
    return value


@pytest.fixture
def bus(storage: StorageProcess, tmp_path: Path) -> Iterator[BusProcess]:
    made = BusProcess(storage, tmp_path / "by-id")
    made.start()
    yield made
    if made.process:
        made.stop()
    until(lambda: not made.mounts())


def written(storage: StorageProcess, size: int) -> bytes:
    """A VM whose disk holds what is returned; frozen by a snapshot and attached to proxy-2."""
    storage.make_vm(sizes=(size,))
    data = os.urandom(size)
    handle = storage.connect("live/web/2000")
    for at in range(0, size, MIB):
        handle.pwrite(data[at : at + MIB], at)
    handle.shutdown()
    storage.call("snapshot.create", vm="web", name="s", description="")
    storage.call("disk.attach", path="web/web.vmdk", by="proxy-2")
    return data


EXPORT = "attached/proxy-2/web/web.vmdk"


def test_a_disk_appears_is_read_and_vanishes(storage: StorageProcess, bus: BusProcess) -> None:
    data = written(storage, 16 * MIB)
    shown = bus.plug(EXPORT, len(data))
    assert (shown["name"], shown["path"]) == (NAME, str(bus.devices / NAME))
    assert Path(shown["path"]).stat().st_size == len(data)
    fd = os.open(shown["path"], os.O_RDONLY)
    assert b"".join(os.pread(fd, MIB, at) for at in range(0, len(data), MIB)) == data
    os.close(fd)
    assert (bus.devices / f"scsi-3{hex_of(UUID)}").read_bytes() == data
    assert [each["name"] for each in bus.client.call("disk.list")] == [NAME]
    bus.client.call("disk.unplug", uuid=UUID.upper().replace("-", ""))
    assert [each.name for each in bus.devices.iterdir() if not each.name.startswith(".")] == []
    assert bus.mounts() == []
    assert bus.client.call("disk.list") == []


def test_an_open_device_that_is_unplugged_fails(storage: StorageProcess, bus: BusProcess) -> None:
    data = written(storage, 4 * MIB)
    fd = os.open(bus.plug(EXPORT, len(data))["path"], os.O_RDONLY)
    assert os.pread(fd, 512, 0) == data[:512]
    bus.client.call("disk.unplug", uuid=UUID)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with pytest.raises(OSError):
        os.pread(fd, 512, 3 * MIB)
    with contextlib.suppress(OSError):  # closing says it once more
        os.close(fd)


def test_writes_of_a_nonpersistent_disk_end_with_it(storage: StorageProcess, bus: BusProcess) -> None:
    data = written(storage, 4 * MIB)
    with Path(bus.plug(EXPORT, len(data))["path"]).open("r+b") as file:
        file.write(b"scratch")
    assert (bus.devices / NAME).read_bytes()[:7] == b"scratch"
    bus.client.call("disk.unplug", uuid=UUID)
    storage.call("disk.detach", path="web/web.vmdk", by="proxy-2")
    storage.call("disk.attach", path="web/web.vmdk", by="proxy-2")
    bus.plug(EXPORT, len(data), read_only=True)
    assert (bus.devices / NAME).read_bytes() == data
    with pytest.raises(OSError):
        (bus.devices / NAME).open("r+b")


def test_plugging_twice_is_once_and_another_disk_of_that_uuid_is_refused(
    storage: StorageProcess, bus: BusProcess
) -> None:
    data = written(storage, 4 * MIB)
    assert bus.plug(EXPORT, len(data)) == bus.plug(EXPORT, len(data))
    assert len(bus.mounts()) == 1
    with pytest.raises(FabricError) as refused:
        bus.plug("file/web/web.vmdk", len(data))
    assert refused.value.code == "exists"


def test_what_can_not_be_shown_leaves_nothing(storage: StorageProcess, bus: BusProcess) -> None:
    size = len(written(storage, 4 * MIB))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("no-device", {"export": "file/web/none.vmdk", "size": size}),
        ("bad-size", {"export": EXPORT, "size": size + 512}),
        ("malformed", {"export": EXPORT, "size": size, "uuid": "6000"}),
        ("malformed", {"export": EXPORT, "size": True}),
        ("malformed", {"export": EXPORT, "size": size, "read_only": "no"}),
    ]
    for code, values in cases:
        with pytest.raises(FabricError) as refused:
            bus.plug(**values)
        assert refused.value.code == code
    with pytest.raises(FabricError) as refused:
        bus.client.call("disk.unplug", uuid=UUID)
    assert refused.value.code == "not-found"
    assert bus.mounts() == []
    assert [each.name for each in bus.devices.iterdir() if not each.name.startswith(".")] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_everything_is_gone_when_the_bus_dies(storage: StorageProcess, bus: BusProcess, number: int) -> None:
    data = written(storage, 4 * MIB)
    assert bus.process
    pid = bus.process.pid
    bus.plug(EXPORT, len(data))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 2  # the janitor and nbdfuse
    code = bus.stop(number)
    assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    until(lambda: not bus.mounts() and not (bus.devices / NAME).is_symlink())
    until(lambda: not any(Path(f"/proc/{child}/fd/0").exists() for child in children))
    bus.start()  # the next one begins with an empty folder and can be given the same disk
    assert bus.client.call("disk.list") == []
    assert Path(bus.plug(EXPORT, len(data))["path"]).read_bytes() == data


def test_wrong_arguments(tmp_path: Path) -> None:
    def run(*argv: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "fakes.scsi_bus", *argv], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
        return done.returncode, done.stderr

    devices = str(tmp_path / "d")
    assert run()[0] == 2
    code, text = run("--vm", "a/b", "--fabric", str(tmp_path), "--devices", devices)
    assert (code, "not a VM's name" in text) == (2, True)
    code, text = run("--vm", "a", "--fabric", str(tmp_path / "none"), "--devices", devices)
    assert (code, "no such folder" in text) == (2, True)
