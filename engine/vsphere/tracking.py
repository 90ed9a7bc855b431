# SPDX-License-Identifier: MIT
"""Changed block tracking of vSphere (flow reference 5.5): switch it on, read change IDs, ask which areas changed.

Blocking; `engine.vsphere.link` calls these in threads. *Change ID*: `52 de … 63/81`, the part before the slash is that of a
tracking period (a reset begins a new one), the number after it grows with each snapshot. `*` asks for allocated areas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyVmomi import vim

from engine.vsphere.faults import VSphereFault
from engine.vsphere.operations import VSphere

CLUSTER = 1 << 16
ALLOCATED = "*"
DEADLINE = 60.0

Extent = tuple[int, int]


class ChangesUnclear(VSphereFault):
    """vCenter's answer does not say which areas of a disk changed."""

    code = "cbt.unclear"
    symptom = "answer unusable"
    advice = "Nothing needs to be done: the disk is compared or read whole instead. Look at the vCenter's log."


@dataclass(frozen=True, slots=True)
class Tracking:
    """Whether changes of a VM's disks are tracked from the next snapshot on; why not; whether this run switched it on."""

    on: bool
    switched: bool = False
    reason: str = ""


def ensure(vsphere: VSphere, vm: str, *, step: str) -> Tracking:
    """Switches tracking on for a VM, which takes effect with its next snapshot; only while it has no snapshots."""
    machine = vim.VirtualMachine(vm, vsphere.stub)
    on, snapshots = vsphere.call(
        lambda: (bool(machine.config and machine.config.changeTrackingEnabled), machine.snapshot), step=step
    )
    if on:
        return Tracking(True)
    if snapshots is not None and snapshots.rootSnapshotList:
        return Tracking(False, reason="the VM has snapshots, so tracking cannot be switched on")
    spec = vim.vm.ConfigSpec(changeTrackingEnabled=True)
    task = vsphere.call(lambda: machine.ReconfigVM_Task(spec=spec), step=step, repeatable=False)
    vsphere.wait(task, step=step, timeout=DEADLINE)
    if not vsphere.call(lambda: bool(machine.config and machine.config.changeTrackingEnabled), step=step):
        return Tracking(False, reason="vCenter did not keep the setting")
    return Tracking(True, switched=True)


def change_ids(vsphere: VSphere, snapshot: str, *, step: str) -> dict[int, str]:
    """Device key → change ID, from the disk backings in the snapshot's configuration; disks that are not tracked are missing."""
    found = {}
    for device in vsphere.snapshot_devices(snapshot, step=step):
        identity = getattr(getattr(device, "backing", None), "changeId", None)
        if isinstance(device, vim.vm.device.VirtualDisk) and identity:
            found[int(device.key)] = str(identity)
    return found


def changed_areas(
    vsphere: VSphere, vm: str, snapshot: str, key: int, since: str, capacity: int, *, step: str
) -> list[Extent]:
    """Areas of a disk that changed from `since` to the snapshot, rounded to 64 KiB, page by page until the disk is covered.

    Raises:
        VSphereFault: vCenter cannot tell (its fault). ChangesUnclear: a page leaves something out.
    """
    machine, taken = vim.VirtualMachine(vm, vsphere.stub), vim.vm.Snapshot(snapshot, vsphere.stub)
    areas: list[Extent] = []
    start = 0
    while start < capacity:
        page = vsphere.call(
            lambda at=start: machine.QueryChangedDiskAreas(  # type: ignore[misc]
                snapshot=taken, deviceKey=key, startOffset=at, changeId=since
            ),
            step=step,
        )
        if page.startOffset > start or page.startOffset + page.length <= start:
            raise ChangesUnclear(
                f"{vsphere.name}: asked from {start}, told of {page.startOffset}+{page.length}", **vsphere.where(step)
            )
        areas += [(int(area.start), int(area.length)) for area in page.changedArea or []]
        start = int(page.startOffset + page.length)
    return rounded(areas, capacity)


def rounded(areas: Iterable[Extent], capacity: int) -> list[Extent]:
    """Areas rounded outwards to 64 KiB, inside the disk, ascending, those that touch joined."""
    found: list[Extent] = []
    for offset, length in sorted(areas):
        begin = max(0, offset) // CLUSTER * CLUSTER
        end = min(-(-(offset + length) // CLUSTER) * CLUSTER, capacity)
        if length <= 0 or begin >= end:
            continue
        if found and begin <= found[-1][0] + found[-1][1]:
            first = found.pop()
            begin, end = first[0], max(end, first[0] + first[1])
        found.append((begin, end - begin))
    return found
