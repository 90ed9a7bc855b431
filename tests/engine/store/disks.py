# SPDX-License-Identifier: MIT
"""Making stored disks, restore points and chains for tests."""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from engine.store.clusters import BATCH, CLUSTER_BITS, Packer
from engine.store.point_disk import PointDisk
from engine.store.points import Points
from engine.store.qcow2.reader import Qcow2Reader
from engine.store.restore import to_file
from engine.store.target import Stored, TargetDisk

POINT = "20261125T071500Z-3f2a"
CLUSTER = 1 << CLUSTER_BITS
PIECE = BATCH << CLUSTER_BITS
START = datetime(2026, 11, 25, 7, 15, tzinfo=UTC)


def point_id(number: int) -> str:
    """Ids of points that are an hour apart."""
    return f"{START + timedelta(hours=number):%Y%m%dT%H%M%SZ}-{number:04x}"


def fill(disk: TargetDisk, content: bytes, *, skip_zeros: bool = True) -> None:
    """Sends `content` as batches."""
    packer = Packer()
    view = memoryview(content)
    for offset in range(0, len(content), PIECE):
        batch = packer.pack(offset >> CLUSTER_BITS, view[offset : offset + PIECE])
        if batch.size or not skip_zeros:
            disk.add(batch.first, batch.lengths, batch.digests, memoryview(b"".join(batch.parts)))


def send(disk: TargetDisk, content: bytes, clusters: Iterable[int]) -> None:
    """Sends the named clusters of `content`, zeros included, as an incremental does."""
    packer = Packer()
    for cluster in clusters:
        piece = memoryview(content)[cluster * CLUSTER : (cluster + 1) * CLUSTER]
        batch = packer.pack(cluster, piece)
        disk.add(cluster, batch.lengths, batch.digests, memoryview(b"".join(batch.parts)))


def changed(old: bytes, new: bytes) -> list[int]:
    """Clusters of `new` that differ from `old` (which continues with zeros)."""
    old = old.ljust(len(new), b"\0")
    return [at // CLUSTER for at in range(0, len(new), CLUSTER) if old[at : at + CLUSTER] != new[at : at + CLUSTER]]


def store(folder: Path, content: bytes, *, file: str = "disk-2000.qcow2") -> Stored:
    """A finished disk in `folder`."""
    with TargetDisk(folder, file, len(content)) as disk:
        fill(disk, content)
        return disk.commit()


def make_point(points: Points, content: bytes, *, point: str = POINT, job: str = "demo", vm: str = "vm1") -> Path:
    """A visible restore point with one disk."""
    folder = points.begin(job, vm, point)
    stored = store(folder, content)
    return points.commit(job, vm, point, document(point, stored, job=job, vm=vm))


def document(
    point: str, stored: Stored, *, job: str = "demo", vm: str = "vm1", parent: str | None = None
) -> dict[str, Any]:
    """The manifest that a Backup Manager sends, with the time that the id names."""
    made = datetime.strptime(point.split("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return fields(point, stored.to_dict(), job=job, vm=vm) | {
        "created": made.isoformat(),
        "kind": "incremental" if parent else "full",
        "parent": parent,
    }


def fields(point: str, stored: dict[str, Any], *, job: str = "demo", vm: str = "vm1") -> dict[str, Any]:
    """A manifest of a full with one disk, key 2000."""
    names = ("file", "stored", "digests", "root", "blocks", "blocks_root", "parent_root")
    return {
        "schema": "vadplab.point/2",
        "job": job,
        "vm": {"name": vm, "uuid": "4211"},
        "point": point,
        "created": "2026-11-25T07:15:00Z",
        "kind": "full",
        "consistency": "crash",
        "session": "s1",
        "snapshot": {"moref": "snapshot-1", "name": "backup", "id": 1},
        "vmx": "",
        "disks": [
            {
                "key": 2000,
                "label": "Hard disk 1",
                "path": "[datastore1] vm1/vm1.vmdk",
                "capacity": stored["size"],
                **{name: stored[name] for name in names if name in stored},
            }
        ],
    }


def make_incremental(
    points: Points, old: bytes, new: bytes, *, point: str, parent: str, job: str = "demo", vm: str = "vm1"
) -> Path:
    """A visible incremental on `parent` (whose content is `old`)."""
    folder = points.begin(job, vm, point, kind="incremental", parent=parent)
    with TargetDisk(folder, "disk-2000.qcow2", len(new), parent=PointDisk(folder.parent / parent, 2000)) as disk:
        send(disk, new, changed(old, new))
        stored = disk.commit()
    return points.commit(job, vm, point, document(point, stored, job=job, vm=vm, parent=parent))


def make_chain(points: Points, contents: list[bytes], *, job: str = "demo", vm: str = "vm1") -> list[Path]:
    """A full and incrementals, one for each content; their ids are `point_id(0)` and so on."""
    made = [make_point(points, contents[0], point=point_id(0), job=job, vm=vm)]
    for number in range(1, len(contents)):
        old, new = contents[number - 1], contents[number]
        made.append(
            make_incremental(points, old, new, point=point_id(number), parent=point_id(number - 1), job=job, vm=vm)
        )
    return made


def versions(first: bytes, count: int, seed: int) -> list[bytes]:
    """`first` and `count - 1` later contents: random, text and zero areas are written over it."""
    rng = random.Random(seed)
    made = [first]
    for _ in range(count - 1):
        content = bytearray(made[-1])
        for kind in (0, 1, 2):
            at = rng.randrange(max(1, len(content) - 4 * CLUSTER))
            length = rng.randrange(1, 3 * CLUSTER)
            length = min(length, len(content) - at)
            piece = rng.randbytes(length) if kind == 0 else b"text " * length if kind == 1 else bytes(length)
            content[at : at + length] = piece[:length]
        made.append(bytes(content))
    return made


def content_of(folder: Path, to: Path, key: int = 2000) -> bytes:
    """What a restore of a disk of the point in `folder` gives; `to` is a scratch file."""
    with PointDisk(folder, key) as disk:
        to_file(disk, to)
    return to.read_bytes()


def allocated(reader: Qcow2Reader) -> list[int]:
    """Numbers of the clusters that some file of the chain holds, ascending."""
    return [cluster for cluster in range(reader.clusters) if reader.find(cluster) is not None]
