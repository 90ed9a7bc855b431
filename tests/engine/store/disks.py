# SPDX-License-Identifier: MIT
"""Making stored disks and restore points for tests."""

from __future__ import annotations

from pathlib import Path

from engine.store.clusters import BATCH, CLUSTER_BITS, Packer
from engine.store.points import Points
from engine.store.target import Stored, TargetDisk
from tests.engine.mover.world import manifest

POINT = "20261125T071500Z-3f2a"
PIECE = BATCH << CLUSTER_BITS


def fill(disk: TargetDisk, content: bytes, *, skip_zeros: bool = True) -> None:
    """Sends `content` as batches."""
    packer = Packer()
    view = memoryview(content)
    for offset in range(0, len(content), PIECE):
        batch = packer.pack(offset >> CLUSTER_BITS, view[offset : offset + PIECE])
        if batch.size or not skip_zeros:
            disk.add(batch.first, batch.lengths, batch.digests, memoryview(b"".join(batch.parts)))


def store(folder: Path, content: bytes, *, file: str = "disk-2000.qcow2") -> Stored:
    """A finished disk in `folder`."""
    with TargetDisk(folder, file, len(content)) as disk:
        fill(disk, content)
        return disk.commit()


def make_point(points: Points, content: bytes, *, point: str = POINT, job: str = "demo", vm: str = "vm1") -> Path:
    """A visible restore point with one disk."""
    folder = points.begin(job, vm, point)
    stored = store(folder, content)
    return points.commit(job, vm, point, manifest(point, stored.to_dict(), job=job, vm=vm))
