# SPDX-License-Identifier: MIT
"""Merging: a layer is laid over the one below it. Only map entries move, never data."""

from __future__ import annotations

import copy

from fakes.storage import grains
from fakes.storage.disk import Disk
from fakes.storage.grains import ABSENT, ZEROED
from fakes.storage.layer import Layer
from fakes.storage.structure import Merge, VmRecord
from fakes.storage.vm import Vm


def merge_down(vm: Vm, merge: Merge) -> Layer:
    """Merges one layer into the one below it, in memory and in its map; gives the layer that is gone. The gate is closed."""
    disk = vm.disks[merge.key]
    into = next(layer for layer in disk.chain if layer.id == merge.into)
    source = next(layer for layer in disk.chain if layer.id == merge.source)
    _lay_over(disk, into, source)
    into.frozen = source.frozen
    into.generation += 1
    source.generation += 1
    disk.chain.remove(source)
    for snap in vm.snapshots:
        if snap.layers[str(merge.key)] == source.id:
            snap.layers[str(merge.key)] = into.id
    return source


def merged(record: VmRecord) -> VmRecord:
    """The record of a VM as it will be once its merges are done. `record` and its snapshots are left alone."""
    record = copy.deepcopy(record)
    for merge in record.merges:
        disk = next(d for d in record.disks if d.key == merge.key)
        disk.chain = [layer for layer in disk.chain if layer.id != merge.source]
        for snap in record.snapshots:
            if snap.layers[str(merge.key)] == merge.source:
                snap.layers[str(merge.key)] = merge.into
    record.merges = []
    return record


def _lay_over(disk: Disk, into: Layer, source: Layer) -> None:
    """Lays `source` over `into`; only entries move, no data. The replaced LUN grains go back to the allocator."""
    blank = ABSENT if into is disk.chain[0] else ZEROED
    freed = []
    for grain in grains.used(source.words):
        entry = source.words[grain]
        entry = blank if entry == ZEROED else entry
        old = into.words[grain]
        if old == entry:
            continue
        into.words[grain] = entry
        if old not in (ABSENT, ZEROED):
            freed.append(old - 1)
    disk.lun.release(freed)
