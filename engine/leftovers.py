# SPDX-License-Identifier: MIT
"""Disks that a dead Data Mover left attached to a proxy's VM (HotAdd): detached before the snapshot is committed.

A living mover detaches its own disks, and the next task on a proxy sweeps what it finds (`engine.modes.hotadd`). This is for
the Backup Manager whose mover died, and for the Backup Service after a dead manager.
"""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from engine.modes.hotadd import NONPERSISTENT, same_path
from engine.vsphere import VSphere, VSphereFault

DEADLINE = 60.0
ATTEMPTS = 3


def detach(vsphere: VSphere, proxy_uuid: str, paths: list[str], *, step: str) -> list[str]:
    """Detaches the disks at these datastore paths from the VM with that BIOS UUID; gives those that were attached.

    Only independent-nonpersistent disks are touched: a disk of the proxy's own is never one of them.

    Raises:
        VSphereFault: one of them cannot be detached. ConnectError.
    """
    moref = vsphere.find_by_uuid(proxy_uuid, step=step)
    if moref is None:
        return []
    found: list[str] = []
    for attempt in range(1, ATTEMPTS + 1):
        left = [d for d in vsphere.devices(moref, step=step) if _is_one(d, paths)]
        if not left:
            break
        found += [path for d in left if (path := str(d.backing.fileName)) not in found]
        changes = [vim.vm.device.VirtualDeviceSpec(operation="remove", device=d) for d in left]
        try:
            vsphere.reconfigure(moref, changes, step=step, timeout=DEADLINE)
        except VSphereFault:
            if attempt == ATTEMPTS:  # else: its mover may be detaching it at the same time
                raise
    return found


def _is_one(device: Any, paths: list[str]) -> bool:
    if not isinstance(device, vim.vm.device.VirtualDisk):
        return False
    path = str(getattr(device.backing, "fileName", "") or "")
    mode = str(getattr(device.backing, "diskMode", "") or "")
    return mode == NONPERSISTENT and any(same_path(path, one) for one in paths)
