# SPDX-License-Identifier: MIT
"""A disk of a restore point as a sparse file, restored where the repository's files are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engine.store.point_disk import PointDisk
from engine.store.sparse import SparseFile
from engine.store.verify import THREADS as CHECKING

THREADS = 2 * CHECKING
"""Half of them wait for the device while the others check."""
_AREA = 256
"""Clusters that a thread restores at a time: 16 MiB."""


@dataclass(frozen=True, slots=True)
class RestoreStats:
    """Bytes of the disk, bytes written (the rest is holes), clusters checked, bytes received over the wire."""

    size: int
    written: int
    clusters: int
    received: int = 0


def to_file(disk: PointDisk, path: Path) -> RestoreStats:
    """Restores `disk` to the sparse file `path`, which appears only when every cluster was checked and written."""
    target = SparseFile(path, disk.size)
    try:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="restore") as pool:
            todo = [pool.submit(_restore, disk, target, first, count) for first, count in disk.areas(_AREA)]
            try:
                for work in todo:
                    work.result()
            except BaseException:
                for work in todo:
                    work.cancel()
                raise
        target.finish()
    finally:
        target.discard()
    return RestoreStats(disk.size, target.written, target.clusters)


def _restore(disk: PointDisk, target: SparseFile, first: int, count: int) -> None:
    """Checks and writes one area; neighbouring clusters are written together."""
    run = target.run()
    for number in range(first, first + count):
        data = disk.cluster(number, run.unpacker)
        if data is not None:
            run.add(number, data)
    run.write()
