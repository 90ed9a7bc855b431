# SPDX-License-Identifier: MIT
"""Disks attached to a proxy's own VM (HotAdd), and which of them are left over from a task that died.

*Left over* is a disk of another VM's folder that is attached as only the engine attaches disks: independent-nonpersistent, as
a backup does, or independent-persistent, as a restore does, where the caller names the disk. That its task is dead is what the
caller knows: on the proxy nobody holds the disk's lock (`engine.modes.hotadd`); elsewhere its mover, its run or its VM is the
caller's own, or its run is known to be dead.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from pyVmomi import vim

from engine.vsphere.faults import ObjectNotFound, VSphereFault
from engine.vsphere.operations import VSphere

NONPERSISTENT = "independent_nonpersistent"
PERSISTENT = "independent_persistent"
DEADLINE = 60.0
ATTEMPTS = 3
_VM_FOLDER = re.compile(r"\[([^\]]+)\] ?([^/]+)/")


def same_path(one: str, other: str) -> bool:
    """Whether two datastore paths are the same (the blank after the bracket is optional)."""
    return one.replace("] ", "]") == other.replace("] ", "]")


def folder_of(path: str) -> tuple[str, str] | None:
    """Datastore and folder of a datastore path; None when it has none."""
    match = _VM_FOLDER.match(path)
    return (match[1], match[2]) if match else None


def path_of(disk: Any) -> str:
    """The datastore path of a virtual disk; empty when its backing has none."""
    return str(getattr(disk.backing, "fileName", "") or "")


def disks(vsphere: VSphere, vm: str, *, step: str) -> list[Any]:
    """The virtual disks of a VM (pyVmomi objects)."""
    return [d for d in vsphere.devices(vm, step=step) if isinstance(d, vim.vm.device.VirtualDisk)]


def frozen_paths(vsphere: VSphere, snapshot: str, *, step: str) -> dict[int, str]:
    """Device key → datastore path of the file that a snapshot froze: what a task attaches. Empty when the snapshot is gone."""
    try:
        shown = vsphere.snapshot_devices(snapshot, step=step)
    except ObjectNotFound:
        return {}
    return {int(d.key): path_of(d) for d in shown if isinstance(d, vim.vm.device.VirtualDisk)}


def remove(vsphere: VSphere, vm: str, gone: Collection[Any], *, step: str, timeout: float = DEADLINE) -> None:
    """Detaches these disks from the VM; their files stay. Raises VSphereFault, TaskTimedOut, ConnectError."""
    changes = [vim.vm.device.VirtualDeviceSpec(operation="remove", device=disk) for disk in gone]
    if changes:
        vsphere.reconfigure(vm, changes, step=step, timeout=timeout)


def left_over(vsphere: VSphere, vm: str, named: Collection[str] = (), *, step: str) -> list[Any]:
    """The disks attached to the proxy's VM that are left over if their tasks are dead. `named`: paths that the caller expects."""
    shown = disks(vsphere, vm, step=step)
    own = folder_of(vsphere.vmx_path(vm, step=step))

    def is_left(disk: Any) -> bool:
        path, mode = path_of(disk), str(getattr(disk.backing, "diskMode", "") or "")
        engines = mode == NONPERSISTENT or (mode == PERSISTENT and among(path, named))
        return engines and own is not None and folder_of(path) not in (None, own)

    return [disk for disk in shown if is_left(disk)]


def left_paths(vsphere: VSphere, proxy_uuid: str, *, step: str) -> list[str]:
    """Datastore paths of what backups have attached to the VM with that BIOS UUID, and left there if they are dead."""
    vm = vsphere.find_by_uuid(proxy_uuid, step=step)
    return [] if vm is None else [path_of(disk) for disk in left_over(vsphere, vm, step=step)]


def detach_left(vsphere: VSphere, proxy_uuid: str, paths: Collection[str], *, step: str) -> list[str]:
    """Detaches the disks at these paths, whose tasks are dead, from the VM with that BIOS UUID; gives those that were there.

    Raises:
        VSphereFault: one of them cannot be detached. ConnectError.
    """
    vm = vsphere.find_by_uuid(proxy_uuid, step=step)
    found: list[str] = []
    for attempt in range(1, ATTEMPTS + 1):
        shown = [] if vm is None else left_over(vsphere, vm, paths, step=step)
        left = [disk for disk in shown if among(path_of(disk), paths)]
        if vm is None or not left:
            break
        found += [path for disk in left if (path := path_of(disk)) not in found]
        try:
            remove(vsphere, vm, left, step=step)
        except VSphereFault:
            if attempt == ATTEMPTS:  # else: its mover may be detaching it at the same time
                raise
    return found


def among(path: str, paths: Collection[str]) -> bool:
    """Whether `path` is one of `paths`."""
    return any(same_path(path, one) for one in paths)
