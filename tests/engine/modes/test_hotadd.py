# SPDX-License-Identifier: MIT
"""HotAdd against a vCenter in memory: what is attached, what is refused, what is left and found again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import VadplabError
from engine.events import EventLog
from engine.modes import device as devices
from engine.modes import hotadd
from engine.modes.errors import (
    DeviceReadFailed,
    DeviceSilent,
    HotAddBusy,
    HotAddLeft,
    HotAddNoDevice,
    HotAddNoUnit,
    HotAddRefused,
    ProxyVmNotFound,
    WriteFailed,
)
from engine.modes.proxy_lock import ProxyLock
from engine.vsphere import VSphereFault
from tests.engine.modes.esxi import sample
from tests.engine.modes.memory_vcenter import OWN, PATH, SIZE, MemoryVCenter


@pytest.fixture
def content() -> bytes:
    return sample(SIZE)


@pytest.fixture
def vcenter(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> MemoryVCenter:
    monkeypatch.setattr(hotadd, "DEVICE_DEADLINE", 0.3)
    monkeypatch.setattr(hotadd, "VANISH_DEADLINE", 0.3)
    monkeypatch.setattr(hotadd, "ATTACH_DEADLINE", 0.3)
    return MemoryVCenter(tmp_path, content)


def test_attach_read_detach(vcenter: MemoryVCenter, content: bytes) -> None:
    found = bytearray(SIZE)
    with vcenter.open() as source:
        assert [d.backing.diskMode for d in vcenter.disks] == ["persistent", "independent_nonpersistent"]
        source.read(0, memoryview(found))
    assert found == content
    assert [d.backing.fileName for d in vcenter.disks] == [OWN]
    assert vcenter.logged_out
    source.close()
    assert vcenter.calls == [f"add {PATH}", f"remove {PATH}"]


def test_what_a_crash_left_is_detached_first(vcenter: MemoryVCenter) -> None:
    vcenter.disks += [
        vcenter.disk("[datastore1] web/web.vmdk", "independent_nonpersistent", 1, "c" * 32),
        vcenter.disk("[datastore1] shared/data.vmdk", "independent_persistent", 2, "d" * 32),
        vcenter.disk("[datastore1] proxy-2/scratch.vmdk", "independent_nonpersistent", 3, "e" * 32),
    ]
    with vcenter.open():
        pass
    assert vcenter.calls == ["remove [datastore1] web/web.vmdk", f"add {PATH}", f"remove {PATH}"]


def test_a_disk_that_a_crashed_restore_left_is_attached_anew(vcenter: MemoryVCenter) -> None:
    vcenter.disks.append(vcenter.disk(PATH, "independent_persistent", 1, "c" * 32))
    with vcenter.open():
        pass
    assert vcenter.calls == [f"remove {PATH}", f"add {PATH}", f"remove {PATH}"]


def test_what_another_task_holds_is_left_alone(vcenter: MemoryVCenter) -> None:
    other = "[datastore1] web/web_1-000001.vmdk"
    vcenter.disks.append(vcenter.disk(other, "independent_nonpersistent", 1, "c" * 32))
    with ProxyLock("disk", vcenter.uuid, other) as lock:
        assert lock.try_take()
        with vcenter.open():
            pass
        assert vcenter.calls == [f"add {PATH}", f"remove {PATH}"]
        with ProxyLock("disk", vcenter.uuid, PATH) as same:
            assert same.try_take()
            with pytest.raises(HotAddBusy):
                vcenter.open()


def test_the_machine_is_held_too_long(vcenter: MemoryVCenter) -> None:
    with ProxyLock("vm", vcenter.uuid) as lock:
        assert lock.try_take()
        with pytest.raises(HotAddBusy, match="too long"):
            vcenter.open()


Change = Callable[[MemoryVCenter], None]


def _refuse_add(vcenter: MemoryVCenter) -> None:
    fault = VSphereFault("vcenter: GenericVmConfigFault (no access to the datastore)")
    vcenter.refuse["add"] = fault


def _full(vcenter: MemoryVCenter) -> None:
    vcenter.disks += [
        vcenter.disk(f"[datastore1] proxy-2/{n}.vmdk", "persistent", n, f"{n:032x}") for n in range(1, 16)
    ]


def _no_controller(vcenter: MemoryVCenter) -> None:
    vcenter.controllers = []


def _no_device(vcenter: MemoryVCenter) -> None:
    vcenter.content = None


def _other_size(vcenter: MemoryVCenter) -> None:
    vcenter.content = b"x" * 512


def _other_vm(vcenter: MemoryVCenter) -> None:
    vcenter.uuid = "42110000-0000-0000-0000-00000000dead"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_refuse_add, HotAddRefused),
        (_full, HotAddNoUnit),
        (_no_controller, HotAddNoUnit),
        (_no_device, HotAddNoDevice),
        (_other_size, HotAddNoDevice),
    ],
)
def test_refusals_leave_nothing_behind(vcenter: MemoryVCenter, change: Change, error: type[VadplabError]) -> None:
    before = len(vcenter.disks)
    change(vcenter)
    added = len(vcenter.disks) - before
    with pytest.raises(error) as caught:
        vcenter.open()
    assert type(caught.value) is error
    assert (caught.value.step, caught.value.host) == ("20b", "proxy-2")
    assert len(vcenter.disks) == before + added
    with ProxyLock("disk", vcenter.uuid, PATH) as lock:
        assert lock.try_take(), "the lock is given back"


def test_the_proxy_is_not_in_this_vcenter(vcenter: MemoryVCenter) -> None:
    mine = vcenter.uuid
    _other_vm(vcenter)
    with pytest.raises(ProxyVmNotFound):
        hotadd.ProxyVm(vcenter, mine, vcenter.folder, EventLog(None, host="p", process="t"))  # type: ignore[arg-type]


def test_a_disk_that_cannot_be_detached_is_told_and_found_by_the_next_run(vcenter: MemoryVCenter) -> None:
    source = vcenter.open()
    vcenter.refuse["remove"] = VSphereFault("vcenter: TaskInProgress")
    with pytest.raises(HotAddLeft):
        source.close()
    assert vcenter.logged_out and len(vcenter.disks) == 2
    vcenter.refuse.clear()
    with vcenter.open():
        assert len(vcenter.disks) == 2
    assert len(vcenter.disks) == 1


def test_a_device_that_hangs_or_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    where: dict[str, Any] = {"step": "20b", "host": "proxy-2", "target": None, "port": None}
    release = threading.Event()
    real = devices.os.preadv

    def hang(fd: int, buffers: list[memoryview], offset: int) -> int:
        release.wait(20)
        return real(fd, buffers, offset)

    with devices.DeviceSource(devices.Device(path, write=False, where=where), 2 << 20) as source:
        with pytest.raises(DeviceReadFailed, match="ends at"):
            source.read(1 << 20, memoryview(bytearray(512)))
    monkeypatch.setattr(devices.os, "preadv", hang)
    with devices.DeviceSource(devices.Device(path, write=False, where=where, patience=0.2), 1 << 20) as source:
        with pytest.raises(DeviceSilent):
            source.read(0, memoryview(bytearray(512)))
    release.set()


def test_writing_to_a_full_device() -> None:
    where: dict[str, Any] = {"step": "v6", "host": "proxy-2", "target": None, "port": None}
    with devices.DeviceWriter(devices.Device(Path("/dev/full"), write=True, where=where), 1 << 20) as writer:
        with pytest.raises(WriteFailed) as caught:
            writer.write(0, memoryview(bytes(512)))
        assert caught.value.step == "v6"
