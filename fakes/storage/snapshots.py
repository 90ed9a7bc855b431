# SPDX-License-Identifier: MIT
"""Snapshots of a VM: frozen at one instant, merged away one by one.

*Create*: the top layers of all disks become frozen while the gate is closed, and empty deltas take the writes.
*Remove*: the layer above the frozen one is merged into it (in the middle, at the top or at the base alike). The
structure file is the commit point of both.
"""

from __future__ import annotations

import copy
import time
from typing import Any

from fakes.storage import grains, paths, tracking, truth
from fakes.storage.datastore import Datastore
from fakes.storage.disk import Disk
from fakes.storage.layer import Layer
from fakes.storage.structure import Commit, LayerRecord, Merge, SnapshotRecord, VmRecord
from fakes.storage.vm import Vm


def create(store: Datastore, vm: Vm, name: str, description: str) -> SnapshotRecord:
    """Freezes all disks of the VM at one instant.

    Raises:
        FabricError: `in-use`, the top of a disk is attached to another VM.
        OSError: the host's disk is full; nothing changed. TimeoutError: I/O under way did not end.
    """
    with store.lock, tracking.taking_effect(vm):
        store.attachments.check_free(disk.top.name for disk in vm.disks.values())
        store.finish_merges(vm)  # if an earlier removal was cut short
        identity = vm.next_snapshot
        fresh = {key: _delta(store, vm, disk) for key, disk in vm.disks.items()}
        snapshot = SnapshotRecord(
            id=identity,
            name=name,
            description=description,
            created=_now(),
            parent=vm.snapshots[-1].id if vm.snapshots else None,
            layers={str(key): disk.top.id for key, disk in vm.disks.items()},
            sequences={str(key): disk.sequence for key, disk in vm.disks.items()},
            epochs={str(key): disk.epoch for key, disk in vm.disks.items() if disk.epoch},
        )
        try:
            commit = store.prepare(_with(vm.record(), snapshot, fresh))
            with vm.gate.closed():
                job = _freeze(store, vm, snapshot, fresh, commit)
        except BaseException:
            for layer in fresh.values():
                layer.close()
                layer.path.unlink(missing_ok=True)
            raise
        store.truth.submit(job)
        store.write_vmx(vm)
        return snapshot


def _delta(store: Datastore, vm: Vm, disk: Disk) -> Layer:
    name = paths.delta_name(disk.chain[0].name, [layer.name for layer in disk.chain])
    return store.layer(vm.name, disk.key, disk.size, disk.next_layer, name, create=True)


def _with(record: VmRecord, snapshot: SnapshotRecord, fresh: dict[int, Layer]) -> VmRecord:
    """The record of the VM as it will be with the snapshot."""
    record = copy.deepcopy(record)
    record.snapshots.append(snapshot)
    record.next_snapshot += 1
    for disk in record.disks:
        disk.chain.append(LayerRecord(fresh[disk.key].id, fresh[disk.key].name))
        disk.sequence += 1
        disk.next_layer += 1
    return record


def _freeze(store: Datastore, vm: Vm, snapshot: SnapshotRecord, fresh: dict[int, Layer], commit: Commit) -> truth.Job:
    """The instant: plan of the truth record, copies of the write logs, commit, new tops. The gate is closed."""
    header = {
        "schema": truth.SCHEMA,
        "vm": vm.name,
        "id": snapshot.id,
        "name": snapshot.name,
        "description": snapshot.description,
        "created": snapshot.created,
        "disks": [
            {"key": d.key, "label": d.label, "size": d.size, "block": grains.GRAIN, "sequence": d.sequence}
            for d in vm.disks.values()
        ],
    }
    job = store.truth.plan(vm.name, header, list(vm.disks.values()))
    try:
        for key, disk in vm.disks.items():
            store.log_copy(vm, key, snapshot.id).write_bytes(disk.log.words)
        views = {key: disk.view[:] for key, disk in vm.disks.items()}
        commit.now()
    except BaseException:
        for key in vm.disks:
            store.log_copy(vm, key, snapshot.id).unlink(missing_ok=True)
        store.truth.withdraw(job)
        raise
    for key, disk in vm.disks.items():
        disk.top.frozen = views[key]
        disk.chain.append(fresh[key])
        disk.sequence += 1
        disk.next_layer += 1
    vm.snapshots.append(snapshot)
    vm.next_snapshot += 1
    return job


def remove(store: Datastore, vm: Vm, identity: int, *, children: bool) -> None:
    """Merges a snapshot away, with `children` also all that were taken after it. Its truth record stays.

    Raises:
        FabricError: `not-found`, or `in-use`: a file that the merge would change, or one above it, is attached.
    """
    with store.lock, tracking.taking_effect(vm):
        store.finish_merges(vm)
        start = vm.snapshots.index(vm.snapshot(identity))
        _check_free(store, vm, vm.snapshots[start])
        doomed = vm.snapshots[start:] if children else [vm.snapshots[start]]
        for snapshot in reversed(doomed):
            _remove_one(store, vm, snapshot)
        store.write_vmx(vm)


def _check_free(store: Datastore, vm: Vm, snapshot: SnapshotRecord) -> None:
    """Whoever has a disk file open reads all files below it too: none of these may be merged."""
    for key, disk in vm.disks.items():
        position = [layer.id for layer in disk.chain].index(snapshot.layers[str(key)])
        store.attachments.check_free(layer.name for layer in disk.chain[position:])


def _remove_one(store: Datastore, vm: Vm, snapshot: SnapshotRecord) -> None:
    merges = []
    for key, disk in vm.disks.items():
        ids = [layer.id for layer in disk.chain]
        position = ids.index(snapshot.layers[str(key)])
        merges.append(Merge(key, ids[position], ids[position + 1]))
    at = vm.snapshots.index(snapshot)
    if at + 1 < len(vm.snapshots):
        vm.snapshots[at + 1].parent = snapshot.parent
    del vm.snapshots[at]
    vm.merges = merges
    store.save()
    store.finish_merges(vm)
    for key in vm.disks:
        store.log_copy(vm, key, snapshot.id).unlink(missing_ok=True)


def label(store: Datastore, vm: Vm, identity: int, ref: str | None) -> None:
    """Remembers the vSphere reference of a snapshot."""
    with store.lock:
        vm.snapshot(identity).ref = ref
        store.save()


def rename(store: Datastore, vm: Vm, identity: int, name: str | None, description: str | None) -> None:
    """Gives a snapshot another name or description; None keeps the one it has. Its truth record keeps the first ones."""
    with store.lock:
        snapshot = vm.snapshot(identity)
        snapshot.name = snapshot.name if name is None else name
        snapshot.description = snapshot.description if description is None else description
        store.save()


def shown(vm: Vm, snapshot: SnapshotRecord) -> dict[str, Any]:
    """The snapshot as the fabric shows it, with the files' present names."""
    disks = []
    for key, disk in vm.disks.items():
        ids = [layer.id for layer in disk.chain]
        position = ids.index(snapshot.layers[str(key)])
        disks.append(
            {
                "key": key,
                "frozen": disk.chain[position].name,
                "live": disk.chain[position + 1].name,
                "sequence": snapshot.sequences[str(key)],
                "change_id": tracking.text(epoch, snapshot.sequences[str(key)])
                if (epoch := snapshot.epochs.get(str(key)))
                else None,
            }
        )
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "description": snapshot.description,
        "created": snapshot.created,
        "parent": snapshot.parent,
        "ref": snapshot.ref,
        "disks": disks,
    }


def _now() -> str:
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}Z"
