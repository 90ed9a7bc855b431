# SPDX-License-Identifier: MIT
"""The books of a run: a `VmRun` per VM of the job, a `DiskTask` per VM disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.errors import VadplabError
from engine.manager.errors import VmMissing
from engine.manager.peers import Mover
from engine.manager.reading import Base, Reading
from engine.rpc.client import CallTimedOut
from engine.vsphere import Disk, Snapshot, VmInfo


@dataclass(slots=True)
class DiskTask:
    """One VM disk: who reads it, who keeps it, and how it went. `id` is `<vm>:<device key>`.

    modes: what is tried, in order; mode: what the disk was read in; failed_over: `{mode, code, message}` of those before it.
    change_id: of the snapshot. lost: `{proxy, error}` of an attempt whose proxy was lost.
    """

    vm: str
    disk: Disk
    proxy: str = ""
    repository: str = ""
    source: Mover | None = None
    target: Mover | None = None
    error: VadplabError | None = None
    modes: tuple[str, ...] = ()
    mode: str = ""
    failed_over: list[dict[str, str]] = field(default_factory=list)
    change_id: str | None = None
    reading: Reading | None = None
    lost: list[dict[str, Any]] = field(default_factory=list)
    vmx: str = ""
    stored: dict[str, Any] = field(default_factory=dict)
    moved: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The task's id, in events and arguments of processes."""
        return f"{self.vm}:{self.disk.key}"

    def proxy_is_lost(self, error: VadplabError) -> bool:
        """Whether it failed because the proxy's Data Mover is gone or does not answer, not because of what that reported."""
        if self.source is None:
            return False
        return self.source.closed.is_set() or (isinstance(error, CallTimedOut) and error.target == self.proxy)

    @property
    def movers(self) -> list[Mover]:
        """The control connections that are open."""
        return [m for m in (self.source, self.target) if m is not None]


@dataclass(slots=True)
class VmRun:
    """One VM of the job in this run."""

    name: str
    tasks: list[DiskTask]
    info: VmInfo | None = None
    error: VadplabError | None = None
    warnings: list[VadplabError] = field(default_factory=list)
    scripts: str = "off"  # off, not reached (asked for, but the run ended before), ran, did not run
    consistency: str = "crash"
    snapshot: Snapshot | None = None
    snapshot_requested: bool = False
    orphan: bool = False
    tracking_off: str = ""
    newest: dict[str, Any] | None = None  # what the repository answered at step 5a
    base: Base | None = None
    point: str | None = None
    folder: str = ""
    point_visible: bool = False

    @property
    def failed(self) -> bool:
        """Whether its backup failed."""
        return self.error is not None

    @property
    def capacity(self) -> int:
        """Bytes of all disks."""
        return sum(task.disk.capacity for task in self.tasks)

    def fail(self, error: VadplabError) -> None:
        """The first error is the one that is told."""
        if self.error is None:
            self.error = error


def tasks_from(inputs: Mapping[str, Any]) -> list[VmRun]:
    """Step 3: one task per VM disk, as the configuration database knows them."""
    vms = []
    for known in inputs["vms"]:
        vm = VmRun(known["name"], [DiskTask(known["name"], Disk(**disk)) for disk in known["disks"]])
        if known.get("missing"):
            vm.fail(VmMissing(f"VM {vm.name} is not in the inventory of {inputs['vcenter']['name']}", step="3"))
        vms.append(vm)
    return vms


def compare(vm: VmRun, info: VmInfo) -> tuple[list[DiskTask], list[DiskTask]]:
    """Step 8: the disks that vCenter shows against the tasks. Gives (new, gone); kept tasks take vCenter's path and size."""
    known = {task.disk.key: task for task in vm.tasks}
    shown = {disk.key: disk for disk in info.disks}
    for key, task in known.items():
        if key in shown:
            task.disk = shown[key]
    new = [DiskTask(vm.name, disk) for key, disk in shown.items() if key not in known]
    gone = [task for key, task in known.items() if key not in shown]
    vm.tasks = sorted([t for t in vm.tasks if t not in gone] + new, key=lambda t: t.disk.key)
    return new, gone


def assign(tasks: Iterable[DiskTask], assignments: Iterable[Mapping[str, str]]) -> None:
    """Step 4: puts the scheduler's answer into the tasks."""
    by_task = {a["task"]: a for a in assignments}
    for task in tasks:
        task.proxy = by_task[task.id]["proxy"]
        task.repository = by_task[task.id]["repository"]
