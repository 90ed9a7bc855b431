# SPDX-License-Identifier: MIT
"""A VM as the storage knows it: its disks behind one gate, its snapshots from oldest to newest."""

from __future__ import annotations

from dataclasses import dataclass, field

from fakes.core.fabric import FabricError
from fakes.storage.disk import Disk
from fakes.storage.gate import Gate
from fakes.storage.structure import DiskRecord, LayerRecord, Merge, SnapshotRecord, VmRecord


@dataclass
class Vm:
    """A VM as the storage knows it. `tracking`: asked for (see `tracking`); `gone`: deleted, its exports are dead."""

    name: str
    uuid: str
    folder: str
    power: bool
    gate: Gate
    disks: dict[int, Disk]
    snapshots: list[SnapshotRecord] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    next_snapshot: int = 1
    tracking: bool = False
    gone: bool = False

    def record(self) -> VmRecord:
        """What the structure file keeps of it."""
        disks = [
            DiskRecord(
                d.key,
                d.label,
                d.size,
                d.sequence,
                d.next_layer,
                [LayerRecord(la.id, la.name) for la in d.chain],
                d.epoch,
            )
            for d in self.disks.values()
        ]
        return VmRecord(
            self.name,
            self.uuid,
            self.folder,
            self.power,
            self.next_snapshot,
            disks,
            self.snapshots,
            self.merges,
            self.tracking,
        )

    def disk(self, key: int) -> Disk:
        """The disk with that device key; FabricError `not-found` if there is none."""
        if key not in self.disks:
            raise FabricError("not-found", f"{self.name} has no disk {key}")
        return self.disks[key]

    def snapshot(self, identity: int) -> SnapshotRecord:
        """The snapshot of that id; FabricError `not-found` if there is none."""
        for each in self.snapshots:
            if each.id == identity:
                return each
        raise FabricError("not-found", f"{self.name} has no snapshot {identity}")
