# SPDX-License-Identifier: MIT
"""Disks left attached to a proxy's VM: found by folder, mode and path, detached again when that fails, never a disk of the proxy's own."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from engine.vsphere import ObjectNotFound, VSphereFault
from engine.vsphere.attached import ATTEMPTS, detach_left, folder_of, frozen_paths, left_paths, same_path

LEFT = "[ds] linux-vm/linux-vm.vmdk"


def disk(key: int, path: str, mode: str) -> Any:
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=path, diskMode=mode)
    return vim.vm.device.VirtualDisk(key=key, backing=backing, capacityInKB=1)


class Fake:
    """A session that shows one VM's devices."""

    def __init__(self, *devices: Any, failures: int = 0, known: bool = True) -> None:
        self.shown = [vim.vm.device.ParaVirtualSCSIController(key=1000), *devices]
        self.failures = failures
        self.known = known
        self.placed = True
        self.attempts = 0

    def find_by_uuid(self, uuid: str, *, step: str) -> str | None:
        return "vm-7" if self.known else None

    def devices(self, vm: str, *, step: str) -> list[Any]:
        return list(self.shown)

    def vmx_path(self, vm: str, *, step: str) -> str:
        return "[ds] proxy-2/proxy-2.vmx" if self.placed else ""

    def snapshot_devices(self, snapshot: str, *, step: str) -> list[Any]:
        if not self.known:
            raise ObjectNotFound("gone")
        return list(self.shown)

    def reconfigure(self, vm: str, changes: list[Any], *, step: str, timeout: float) -> None:
        self.attempts += 1
        if self.attempts <= self.failures:
            raise VSphereFault("busy")
        for change in changes:
            assert change.operation == "remove"
            self.shown.remove(change.device)


def test_only_what_is_left_is_detached() -> None:
    spelt = LEFT.replace("] ", "]")
    kept = [
        disk(2000, "[ds] proxy-2/proxy-2.vmdk", "persistent"),
        disk(2001, "[ds] proxy-2/scratch.vmdk", "independent_nonpersistent"),
        disk(2002, LEFT, "persistent"),
        disk(2003, "[ds] shared/data.vmdk", "independent_persistent"),
        disk(2004, "[ds] db-vm/db-vm.vmdk", "independent_nonpersistent"),
    ]
    fake = Fake(*kept, disk(2005, spelt, "independent_nonpersistent"), disk(2006, LEFT, "independent_persistent"))
    wanted = [LEFT, "[ds] proxy-2/scratch.vmdk"]
    assert detach_left(fake, "u", wanted, step="22") == [spelt, LEFT]  # type: ignore[arg-type]
    assert fake.shown[1:] == kept
    assert detach_left(fake, "u", wanted, step="22") == [] and fake.attempts == 1  # type: ignore[arg-type]
    assert left_paths(fake, "u", step="8") == ["[ds] db-vm/db-vm.vmdk"]  # type: ignore[arg-type]
    fake.placed = False  # where the proxy's own disks lie is not known: none is touched
    assert left_paths(fake, "u", step="8") == []  # type: ignore[arg-type]


def test_failures_are_tried_again_and_then_raised() -> None:
    fake = Fake(disk(2003, LEFT, "independent_nonpersistent"), failures=ATTEMPTS - 1)
    assert detach_left(fake, "u", [LEFT], step="22") == [LEFT]  # type: ignore[arg-type]
    fake = Fake(disk(2003, LEFT, "independent_nonpersistent"), failures=ATTEMPTS)
    with pytest.raises(VSphereFault):
        detach_left(fake, "u", [LEFT], step="22")  # type: ignore[arg-type]


def test_a_proxy_or_a_snapshot_that_is_gone_has_nothing_left() -> None:
    gone = Fake(disk(2003, LEFT, "independent_nonpersistent"), known=False)
    assert detach_left(gone, "u", [LEFT], step="22") == []  # type: ignore[arg-type]
    assert left_paths(gone, "u", step="8") == [] and frozen_paths(gone, "s", step="8") == {}  # type: ignore[arg-type]
    assert frozen_paths(Fake(disk(2003, LEFT, "persistent")), "s", step="8") == {2003: LEFT}  # type: ignore[arg-type]


def test_paths_are_compared_without_the_optional_blank() -> None:
    assert same_path("[ds] a/b.vmdk", "[ds]a/b.vmdk") and not same_path("[ds] a/b.vmdk", "[ds] a/b-000001.vmdk")
    assert folder_of("[ds] a/b.vmdk") == folder_of("[ds]a/c.vmx") == ("ds", "a") and folder_of("[ds] ") is None
