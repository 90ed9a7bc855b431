# SPDX-License-Identifier: MIT
"""The health of stored restore points: every byte of every file against the digests, and which points that leaves usable.

*Own* = what lies in a point's own folder. A point is intact when every cluster of its disks can be read, its own and those
of the points below it. Each file is read once, however many points stand on it. What a clean result proves: all files
(header, tables, refcounts, padding, data, digests, manifest) are, bit by bit, what was read back and verified when the
point was made; chains fit together. With `deep`, every cluster is expanded and compared with its digest again as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from engine.errors import VadplabError
from engine.store import blocks, chain, locks, marker
from engine.store.clusters import CLUSTER, Unpacker, matches
from engine.store.digests import DigestTable
from engine.store.errors import FormatError
from engine.store.manifest import FILE, POINT_ID, DiskEntry, Manifest
from engine.store.qcow2.reader import Qcow2Reader
from engine.store.verify import check_clusters, verify_disk, walk

_NAMED = 8


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged place: VM, point, disk (key, None for the manifest), file, bytes `offset`..`offset + length` of the file.

    disk_offsets: where in the disk data is lost by it; empty when it is not data, or when that cannot be told.
    """

    vm: str
    point: str
    disk: int | None
    file: str
    offset: int
    length: int
    what: str
    disk_offsets: tuple[int, ...] = ()

    def describe(self) -> str:
        """One line."""
        end = f"..{self.offset + self.length}" if self.length > 1 else ""
        lost = ", ".join(map(str, self.disk_offsets[:_NAMED])) + (", …" if len(self.disk_offsets) > _NAMED else "")
        disk = f", disk {self.disk}" if self.disk is not None else ""
        data = f"; damaged data at disk offset {lost}" if lost else ""
        return (
            f"{self.vm}, restore point {self.point}{disk}: {self.file} at offset {self.offset}{end}: {self.what}{data}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As a message."""
        return {
            "vm": self.vm,
            "point": self.point,
            "disk": self.disk,
            "file": self.file,
            "offset": self.offset,
            "length": self.length,
            "what": self.what,
            "disk_offsets": list(self.disk_offsets),
            "text": self.describe(),
        }


@dataclass(slots=True)
class PointHealth:
    """One point: its own damage, and which disks (keys) can be restored whole, own and inherited data considered.

    broken_disks: {key: offsets of the disk that are lost, None when the disk cannot be read at all}.
    """

    point: str
    vm: str
    folder: Path
    manifest: Manifest | None
    damage: list[Damage] = field(default_factory=list)
    intact_disks: list[int] = field(default_factory=list)
    broken_disks: dict[int, list[int] | None] = field(default_factory=dict)

    @property
    def intact(self) -> bool:
        """Every disk of the point can be restored."""
        return self.manifest is not None and not self.broken_disks

    def to_dict(self) -> dict[str, Any]:
        """As a message."""
        return {
            "point": self.point,
            "vm": self.vm,
            "folder": str(self.folder),
            "intact": self.intact,
            "intact_disks": self.intact_disks,
            "broken_disks": [{"key": key, "lost": lost} for key, lost in self.broken_disks.items()],
            "damage": [damage.to_dict() for damage in self.damage],
        }


@dataclass(slots=True)
class Health:
    """Result for the points of one VM, oldest first."""

    points: list[PointHealth]

    @property
    def intact(self) -> bool:
        """Nothing is wrong anywhere."""
        return all(point.intact and not point.damage for point in self.points)

    @property
    def damage(self) -> list[Damage]:
        """Everything that is wrong."""
        return [damage for point in self.points for damage in point.damage]

    def summary(self, point: str, vm: str) -> str:
        """For errors about `point`: what is damaged, and which disks and other points of the VM are intact."""
        found = "; ".join(damage.describe() for damage in self.damage[:4]) or "all files are as they were written"
        disks = next((p.intact_disks for p in self.points if p.point == point), [])
        points = [p.point for p in self.points if p.intact and p.point != point]
        whole = f"intact disks of this point: {', '.join(map(str, disks)) or 'none'}"
        return f"{found}; {whole}; other intact points of {vm} in this job: {', '.join(points) or 'none'}"


def of_vm(folder: Path, *, only: str | None = None, deep: bool = False) -> Health:
    """Checks the points of the VM folder `folder`; `only`: one point and those below it. The caller locks the chain."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and POINT_ID.fullmatch(path.name))
    if only is not None:
        names = [name for name in names if name in _below(folder, only)]
    points = [_own(folder / name, deep) for name in names]
    bad = {(damage.point, damage.disk) for point in points for damage in point.damage}
    for point in points:
        for disk in point.manifest.disks if point.manifest else []:
            lost = _lost_of(point, disk, bad)
            if lost == []:
                point.intact_disks.append(disk.key)
            else:
                point.broken_disks[disk.key] = lost
    return Health(points)


def verify(folder: Path, *, only: str | None = None, deep: bool = False, wait: float = 5.0) -> Health:
    """As `of_vm`, with the chain locked against merging meanwhile.

    Raises:
        ChainLocked: it is being merged. RepositoryGone, StoreError: the folder cannot be read.
    """
    with locks.chain(folder, wait=wait):
        return of_vm(folder, only=only, deep=deep)


def verify_repository(repository: Path, *, vm: str | None = None, deep: bool = False) -> list[Health]:
    """`verify` for every VM (or the one of that name) of every job. Raises RepositoryGone when the folder is not there."""
    marker.require(repository)
    folders = sorted({path.parent for path in repository.glob("*/*/*") if POINT_ID.fullmatch(path.name)})
    wanted = [folder for folder in folders if vm in (None, unquote(folder.name))]
    return [verify(folder, deep=deep) for folder in wanted]


def of_disk(vm: str, folder: Path, point: Manifest, disk: DiskEntry, *, deep: bool = False) -> list[Damage]:
    """Damage of one disk's own files in the point's folder."""
    if disk.blocks is None or disk.blocks_root is None:
        return _of_first_schema(vm, folder, point, disk)
    found = []
    for bad in blocks.check(folder, disk.file, disk.stored, disk.digests, disk.blocks, disk.blocks_root):
        lost = _lost(folder, disk, bad)
        found.append(Damage(vm, point.point, disk.key, bad.file, bad.offset, bad.length, bad.what, lost))
    if not found:
        found = [Damage(vm, point.point, disk.key, disk.file, 0, 0, text) for text in _structure(folder, disk)]
    if not found and deep:
        found = _deep(vm, folder, point, disk)
    return found


def _own(folder: Path, deep: bool) -> PointHealth:
    vm = folder.parent.name
    try:
        found = Manifest.load(folder)
    except FormatError as exc:
        length = 0
        if (folder / FILE).is_file():
            length = (folder / FILE).stat().st_size
        bad = Damage(vm, folder.name, None, FILE, 0, length, exc.message)
        return PointHealth(folder.name, vm, folder, None, [bad])
    point = PointHealth(folder.name, found.vm.name, folder, found)
    for disk in found.disks:
        point.damage += of_disk(found.vm.name, folder, found, disk, deep=deep)
    known = {FILE, *(name for disk in found.disks for name in disk.files)}
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            what = "is not part of the restore point"
            point.damage.append(Damage(found.vm.name, folder.name, None, path.name, 0, 0, what))
    return point


def _lost_of(point: PointHealth, disk: DiskEntry, bad: set[tuple[str, int | None]]) -> list[int] | None:
    """Offsets of the disk that cannot be restored; None: nothing at all can be. Own and inherited data considered."""
    try:
        links = chain.links(point.folder, point.manifest)
        if not any((link.folder.name, disk.key) in bad for link, _ in chain.disk_links(links, disk.key)):
            chain.open_disk(links, disk.key).close()
            return []
        table = DigestTable.load(point.folder / disk.digests, disk.capacity)
        if table.root() != disk.root:
            return None
        with chain.open_disk(links, disk.key) as reader:
            report = check_clusters(reader, table)
            return None if report.problems else [cluster * CLUSTER for cluster in report.damaged]
    except VadplabError:
        return None


def _below(folder: Path, point: str) -> set[str]:
    try:
        return {link.folder.name for link in chain.links(folder / point)}
    except FormatError:
        return {point}


def _lost(folder: Path, disk: DiskEntry, bad: blocks.BadBlock) -> tuple[int, ...]:
    """Offsets in the disk of clusters whose stored bytes lie in the damaged place and do not match their digest."""
    if bad.file != disk.file or not bad.length:
        return ()
    try:
        table = DigestTable.load(folder / disk.digests, disk.capacity)
        reader = Qcow2Reader(folder / disk.file, alone=True)
    except FormatError:
        return ()
    lost = []
    unpacker = Unpacker()
    with reader:
        for cluster in range(reader.clusters):
            try:
                found = reader.find_own(cluster)
                if (
                    found is None
                    or found.offset >= bad.offset + bad.length
                    or found.offset + found.length <= bad.offset
                ):
                    continue
                data: bytes | None = reader.pread(found.offset, found.length)
                data = unpacker.expand(data) if found.compressed and data is not None else data
                right = matches(data, table.get(cluster))
            except FormatError:
                right = False
            if not right:
                lost.append(cluster * CLUSTER)
    return tuple(lost)


def _structure(folder: Path, disk: DiskEntry) -> list[str]:
    try:
        if DigestTable.load(folder / disk.digests, disk.capacity).root() != disk.root:
            return [f"the digest file {disk.digests} does not match the manifest"]
        with Qcow2Reader(folder / disk.file, alone=True) as reader:
            return walk(reader)
    except FormatError as exc:
        return [exc.message]


def _deep(vm: str, folder: Path, point: Manifest, disk: DiskEntry) -> list[Damage]:
    try:
        with chain.open_disk(chain.links(folder, point), disk.key) as reader:
            table = DigestTable.load(folder / disk.digests, disk.capacity)
            report = verify_disk(folder / disk.file, table, backing=reader.backing)
    except VadplabError as exc:
        return [Damage(vm, point.point, disk.key, disk.file, 0, 0, exc.message)]
    if report.intact:
        return []
    lost = tuple(cluster * CLUSTER for cluster in report.damaged)
    return [Damage(vm, point.point, disk.key, disk.file, 0, 0, report.describe(), lost)]


def _of_first_schema(vm: str, folder: Path, point: Manifest, disk: DiskEntry) -> list[Damage]:
    """A point without digests of its files: tables by their structure, data by its digests."""
    problems = _structure(folder, disk)
    found = [Damage(vm, point.point, disk.key, disk.file, 0, 0, text) for text in problems]
    return found or _deep(vm, folder, point, disk)
