# SPDX-License-Identifier: MIT
"""How much room a restore point will need, and keeping that room free for it.

An *estimate* is bytes on the repository for bytes read from the source. It need not be an upper bound: a repository that
fills up meanwhile fails that job only and leaves the chain as it was.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from engine.store.clusters import CLUSTER_BITS, DIGEST
from engine.store.manifest import Manifest

WITHOUT_HISTORY = 0.6
"""Stored bytes for a byte of the source when nothing is known of the VM (zstd 1 gave 0.32 on program files)."""
_CAUTION = 1.15
_FIXED = 1 << 20


def estimate(data: int, capacity: int, history: Sequence[Manifest] = ()) -> int:
    """Bytes for a point in which `data` bytes of disks of `capacity` bytes together are sent; `history`: its VM's points."""
    ratio = WITHOUT_HISTORY
    for manifest in reversed(history):
        sent = sum((disk.changed or 0) << CLUSTER_BITS for disk in manifest.disks)
        if sent >= _FIXED:
            ratio = min(1.0, _CAUTION * sum(disk.stored for disk in manifest.disks) / sent)
            break
    tables = (capacity >> CLUSTER_BITS) * DIGEST + (data >> CLUSTER_BITS) * DIGEST
    return int(data * ratio) + tables + _FIXED


def used(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk; 0 when it is gone."""
    try:
        return sum(entry.stat().st_blocks * 512 for entry in os.scandir(folder))
    except OSError:
        return 0


def free(repository: Path) -> int:
    """Bytes that are left on the repository's file system for this user. Raises OSError."""
    usage = os.statvfs(repository)
    return usage.f_bavail * usage.f_frsize


def chain_bytes(folder: Path, manifest: Manifest) -> int:
    """About as many bytes as a synthetic full of that point will take, from the files of its chain in the VM's folder."""
    total, seen, current = 0, set(), manifest
    while True:
        total += sum(disk.stored for disk in current.disks)
        seen.add(current.point)
        if current.parent is None or current.parent in seen:
            break
        current = Manifest.load(folder / current.parent)
    fulls = sum(disk.changed or 0 for disk in current.disks)
    if not fulls:
        return total
    per_cluster = sum(disk.stored for disk in current.disks) / fulls
    return int(min(total, _CAUTION * per_cluster * sum(disk.allocated or 0 for disk in manifest.disks) + _FIXED))
