# SPDX-License-Identifier: MIT
"""Which areas of a disk changed between two of its states, and which are allocated: what `QueryChangedDiskAreas` asks.

*Since*: a sequence number of the write log (this service's own clients), a change ID (a backup client's: its epoch must
be that of the state asked for), or `*` for the areas that are allocated anywhere in the chain.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from fakes.core.fabric import FabricError
from fakes.storage import grains, tracking, writelog
from fakes.storage.datastore import Datastore
from fakes.storage.disk import Disk
from fakes.storage.vm import Vm

ALLOCATED = "*"


@dataclass(frozen=True)
class _State:
    """A disk at a snapshot, or as it is now. `last` is the greatest sequence number that may be asked for."""

    log: array[int]
    view: array[int]
    last: int
    epoch: str | None


def changed(store: Datastore, vm: Vm, key: int, since: int | str, identity: int | None) -> list[list[int]]:
    """`[[start, length], …]` in bytes: what was written after `since` up to snapshot `identity` (None: up to now).

    Areas are whole grains: more may be named than was written, never less.

    Raises:
        FabricError: `not-found` (snapshot, disk), `locked` (now, of a VM that runs), `malformed` (since), `not-tracked`
            (tracking was off at that snapshot and is off), `no-epoch` (it was off then and is on now; or the change
            ID's epoch is not that of this disk then), `mismatch` (a sequence number later than that snapshot).
    """
    disk = vm.disk(key)
    with store.lock:
        state = _now(vm, disk) if identity is None else _at(store, vm, disk, identity)
    if since == ALLOCATED:
        _tracked(vm, disk, state)
        return grains.byte_ranges(grains.used(state.view), disk.size)
    number = since if isinstance(since, int) else _checked(vm, disk, state, since)
    if number > state.last:
        raise FabricError("mismatch", f"sequence {number} is later than the state asked for ({state.last})")
    return grains.byte_ranges(writelog.changed(state.log, number), disk.size)


def _at(store: Datastore, vm: Vm, disk: Disk, identity: int) -> _State:
    snapshot, key = vm.snapshot(identity), str(disk.key)
    layer = next(each for each in disk.chain if each.id == snapshot.layers[key])
    log = writelog.load(store.log_copy(vm, disk.key, identity))
    return _State(log, disk.frozen_view(layer), snapshot.sequences[key], snapshot.epochs.get(key))


def _now(vm: Vm, disk: Disk) -> _State:
    if vm.power:
        raise FabricError("locked", f"{vm.name} runs: its changes are known at snapshots only")
    with vm.gate.closed():
        return _State(disk.log.copy(), disk.view[:], disk.sequence - 1, disk.epoch)


def _checked(vm: Vm, disk: Disk, state: _State, change_id: str) -> int:
    epoch, number = tracking.parse(change_id)
    if epoch != _tracked(vm, disk, state):
        raise FabricError("no-epoch", f"disk {disk.key} of {vm.name} was not tracked under {change_id}")
    return number


def _tracked(vm: Vm, disk: Disk, state: _State) -> str:
    if state.epoch is None:
        if disk.epoch is None:
            raise FabricError("not-tracked", f"changes of {vm.name} are not tracked")
        raise FabricError("no-epoch", f"changes of {vm.name} were not tracked yet at that snapshot")
    return state.epoch
