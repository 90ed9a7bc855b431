# SPDX-License-Identifier: MIT
"""Reverting a VM to one of its snapshots: what was written since is thrown away.

The write log is not turned back: every grain written since counts as written *now*, so that a question for changes
since any earlier instant, before or after the snapshot, never misses it.
"""

from __future__ import annotations

import contextlib
import copy

from fakes.core.fabric import FabricError
from fakes.storage import grains, paths, tracking
from fakes.storage.datastore import Datastore
from fakes.storage.disk import Disk
from fakes.storage.grains import ZEROED
from fakes.storage.layer import Layer
from fakes.storage.structure import LayerRecord, SnapshotRecord, VmRecord
from fakes.storage.vm import Vm


def revert(store: Datastore, vm: Vm, identity: int, *, discard_later: bool) -> None:
    """Makes the VM's disks what they were at a snapshot, which stays and is the current one.

    Snapshots taken after it are refused, or thrown away with `discard_later`: chains here have no branches.

    Raises:
        FabricError: `not-found`, `locked` (the VM runs), `has-children`, `in-use` (a disk file that would go is attached).
        OSError: the host's disk is full; nothing changed.
    """
    with store.lock:
        store.finish_merges(vm)
        snapshot = vm.snapshot(identity)
        if vm.power:
            raise FabricError("locked", f"{vm.name} runs: power it off first")
        later = vm.snapshots[vm.snapshots.index(snapshot) + 1 :]
        if later and not discard_later:
            raise FabricError("has-children", f"{vm.name}: snapshot {later[0].id} was taken after {identity}")
        gone = {key: disk.chain[_frozen(disk, snapshot) + 1 :] for key, disk in vm.disks.items()}
        store.attachments.check_free([layer.name for layers in gone.values() for layer in layers])
        with tracking.taking_effect(vm):
            _exchange(store, vm, snapshot, gone)
        _throw_away(store, vm, later, gone)
        store.write_vmx(vm)


def _frozen(disk: Disk, snapshot: SnapshotRecord) -> int:
    return [layer.id for layer in disk.chain].index(snapshot.layers[str(disk.key)])


def _exchange(store: Datastore, vm: Vm, snapshot: SnapshotRecord, gone: dict[int, list[Layer]]) -> None:
    """Fresh, empty deltas take the place of all layers above the frozen ones, in memory and in the structure."""
    with contextlib.ExitStack() as undo:
        fresh = {}
        for key, disk in vm.disks.items():
            name = paths.delta_name(disk.chain[0].name, [layer.name for layer in disk.chain])
            made = fresh[key] = store.layer(vm.name, key, disk.size, disk.next_layer, name, create=True)
            undo.callback(made.path.unlink, missing_ok=True)
            undo.callback(made.close)
        views = {key: disk.frozen_view(disk.chain[_frozen(disk, snapshot)]) for key, disk in vm.disks.items()}
        commit = store.prepare(_reverted(vm.record(), snapshot, fresh))
        with vm.gate.closed():
            for key, disk in vm.disks.items():  # before the commit: after a kill in between, the log claims too much
                since = snapshot.sequences[str(key)]
                for grain in grains.used(disk.log.words):
                    if disk.log.words[grain] > since:
                        disk.log.note(grain, grain, disk.sequence + 1)
            commit.now()
            for key, disk in vm.disks.items():
                disk.chain = [layer for layer in disk.chain if layer not in gone[key]] + [fresh[key]]
                disk.view = views[key][:]
                disk.sequence += 1
                disk.next_layer += 1
                for layer in gone[key]:
                    layer.generation += 1
        undo.pop_all()


def _reverted(record: VmRecord, snapshot: SnapshotRecord, fresh: dict[int, Layer]) -> VmRecord:
    """The record of the VM as it will be."""
    record = copy.deepcopy(record)
    record.snapshots = record.snapshots[: [s.id for s in record.snapshots].index(snapshot.id) + 1]
    for disk in record.disks:
        top = [layer.id for layer in disk.chain].index(snapshot.layers[str(disk.key)])
        disk.chain = [*disk.chain[: top + 1], LayerRecord(fresh[disk.key].id, fresh[disk.key].name)]
        disk.sequence += 1
        disk.next_layer += 1
    return record


def _throw_away(store: Datastore, vm: Vm, later: list[SnapshotRecord], gone: dict[int, list[Layer]]) -> None:
    """Gives back what the structure no longer names."""
    vm.snapshots = [each for each in vm.snapshots if each not in later]
    for key in vm.disks:
        for layer in gone[key]:
            words = layer.words
            store.lun.release([words[g] - 1 for g in grains.used(words) if words[g] != ZEROED])
            layer.close()
            layer.path.unlink()
        for each in later:
            store.log_copy(vm, key, each.id).unlink(missing_ok=True)
