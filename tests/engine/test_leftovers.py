# SPDX-License-Identifier: MIT
"""Disks that a dead mover left attached: found by path and mode, detached again when that fails, never a disk of the proxy's own."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from engine.leftovers import ATTEMPTS, detach
from engine.vsphere import VSphereFault

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
        self.attempts = 0

    def find_by_uuid(self, uuid: str, *, step: str) -> str | None:
        return "vm-7" if self.known else None

    def devices(self, vm: str, *, step: str) -> list[Any]:
        return list(self.shown)

    def reconfigure(self, vm: str, changes: list[Any], *, step: str, timeout: float) -> None:
        self.attempts += 1
        if self.attempts <= self.failures:
            raise VSphereFault("busy")
        for change in changes:
            assert change.operation == "remove"
            self.shown.remove(change.device)


def test_only_what_is_left_is_detached() -> None:
    own = disk(2000, "[ds] proxy-2/proxy-2.vmdk", "persistent")
    same_path = disk(2001, LEFT, "persistent")
    other = disk(2002, "[ds] db-vm/db-vm.vmdk", "independent_nonpersistent")
    fake = Fake(own, same_path, other, disk(2003, LEFT.replace("] ", "]"), "independent_nonpersistent"))
    assert detach(fake, "u", [LEFT], step="22") == [LEFT.replace("] ", "]")]  # type: ignore[arg-type]
    assert fake.shown[1:] == [own, same_path, other]
    assert detach(fake, "u", [LEFT], step="22") == [] and fake.attempts == 1  # type: ignore[arg-type]


def test_failures_are_tried_again_and_then_raised() -> None:
    fake = Fake(disk(2003, LEFT, "independent_nonpersistent"), failures=ATTEMPTS - 1)
    assert detach(fake, "u", [LEFT], step="22") == [LEFT]  # type: ignore[arg-type]
    fake = Fake(disk(2003, LEFT, "independent_nonpersistent"), failures=ATTEMPTS)
    with pytest.raises(VSphereFault):
        detach(fake, "u", [LEFT], step="22")  # type: ignore[arg-type]
    assert detach(Fake(known=False), "u", [LEFT], step="22") == []  # type: ignore[arg-type]
