# SPDX-License-Identifier: MIT
"""Importing restore points that were copied from elsewhere: whole, verified, or not at all.

The source is the folder of a point, of a VM's points, of a job, or of a whole repository. Files are copied into a hidden
folder of this repository, verified there with every point below them, and become visible by one rename, parents first.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import VadplabError
from engine.store import chain, durable, health, locks, space
from engine.store.errors import (
    Damaged,
    ForeignFile,
    FormatError,
    PointExists,
    PointNotFound,
    StoreFull,
    from_write_error,
)
from engine.store.manifest import FILE, POINT_ID, Manifest
from engine.store.points import PARTIAL, Points, folder_name

_LEVELS = ("", "*", "*/*", "*/*/*")
_PIECE = 8 << 20


@dataclass(slots=True)
class Imported:
    """points: folders that are visible now. refused: {folder: why}, each left out with everything that stands on it."""

    points: list[Path] = field(default_factory=list)
    refused: dict[Path, VadplabError] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As a message."""
        refused = [{"folder": str(folder), **error.to_dict()} for folder, error in self.refused.items()]
        return {"points": [str(folder) for folder in self.points], "refused": refused}


def import_points(points: Points, source: Path) -> Imported:
    """Imports every restore point found in `source`; see the module's text.

    Raises:
        PointNotFound: there is none. What is wrong with single points stands in the result.
    """
    folders = {path for level in _LEVELS for path in (source.glob(level) if level else [source])}
    found = sorted(path for path in folders if path.is_dir() and POINT_ID.fullmatch(path.name))
    if not found:
        raise PointNotFound(f"{source}: there is no restore point in it", next="Name a repository, or a part of one.")
    result = Imported()
    for folder in sorted(found, key=lambda path: (_depth(path), path.name)):
        try:
            result.points.append(import_point(points, folder))
        except VadplabError as exc:
            result.refused[folder] = exc
    return result


def import_point(points: Points, folder: Path) -> Path:
    """Imports one point; those below it must be in the repository already. Returns its new folder.

    Raises:
        ForeignFile: files that are not a restore point's. FormatError, Damaged: what is in them is not as it was written.
        PointExists, ChainLocked, StoreFull, ReadOnlyRepository, RepositoryGone.
    """
    manifest = _require_point(folder)
    parent = points.vm_folder(manifest.job, manifest.vm.name)
    if (parent / manifest.point).exists():
        raise PointExists(f"restore point {manifest.point} of {manifest.vm.name} is in the repository already")
    with locks.append(parent, exclusive=True), locks.chain(parent):
        _require_chain(parent, manifest)
        size = space.used(folder)
        if size > (free := points.free_bytes()):
            raise StoreFull(f"{folder}: {size >> 20} MiB are needed, {free >> 20} MiB are free; nothing was imported")
        hidden = parent / f"{PARTIAL}{manifest.point}"
        own: int | None = None
        try:
            durable.make_folder(hidden)
            own = locks.folder_lock(hidden)
            for name in (FILE, *(name for disk in manifest.disks for name in disk.files)):
                _copy(folder / name, hidden / name)
            durable.sync_folder(hidden)
            _require_intact(hidden, manifest)
            durable.rename(hidden, parent / manifest.point)
            durable.sync_folder(parent)
        except OSError as exc:
            raise from_write_error(exc, str(hidden)) from exc
        finally:
            if own is not None:
                os.close(own)
            if hidden.is_dir():
                durable.remove_tree(hidden)
    return parent / manifest.point


def _depth(folder: Path) -> int:
    """How many points lie below this one, as far as its neighbours tell: parents are imported first."""
    with contextlib.suppress(VadplabError):
        return len(chain.links(folder))
    return chain.DEEPEST + 1


def _require_point(folder: Path) -> Manifest:
    """The manifest of a folder that holds the files of one restore point, and nothing else."""
    if not folder.is_dir() or not POINT_ID.fullmatch(folder.name):
        raise ForeignFile(f"{folder}: its name is not that of a restore point")
    for path in sorted(folder.iterdir()):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ForeignFile(f"{path}: not a regular file")
    manifest = Manifest.load(folder)
    if manifest.point != folder.name:
        raise ForeignFile(f"{folder}: its manifest is that of {manifest.point}")
    expected = {FILE, *(name for disk in manifest.disks for name in disk.files)}
    present = {path.name for path in folder.iterdir()}
    if foreign := sorted(present - expected):
        raise ForeignFile(f"{folder}: {foreign[0]} is not part of the restore point")
    if missing := sorted(expected - present):
        raise ForeignFile(f"{folder}: {missing[0]} is missing")
    folder_name(manifest.job), folder_name(manifest.vm.name)
    return manifest


def _require_chain(parent: Path, manifest: Manifest) -> None:
    if manifest.parent is None:
        return
    if not (parent / manifest.parent).is_dir():
        raise FormatError(f"restore point {manifest.point} stands on {manifest.parent}, which is not in the repository")
    below = Manifest.load(parent / manifest.parent)
    for disk in manifest.disks:
        entry = below.disk(disk.key)
        if disk.parent_root is not None and (entry is None or entry.root != disk.parent_root):
            raise FormatError(
                f"restore point {manifest.point}: {manifest.parent} in the repository has another state of disk {disk.key}"
            )


def _require_intact(hidden: Path, manifest: Manifest) -> None:
    for disk in manifest.disks:
        if bad := health.of_disk(manifest.vm.name, hidden, manifest, disk, deep=True):
            raise Damaged(f"{bad[0].describe()}; nothing was imported")


def _copy(source: Path, target: Path) -> None:
    """Copies a file with its holes, and syncs it."""
    read = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(read).st_size
            durable.truncate(write, size)
            offset = 0
            while offset < size:
                try:
                    offset = os.lseek(read, offset, os.SEEK_DATA)
                except OSError:
                    break  # nothing but a hole is left
                end = os.lseek(read, offset, os.SEEK_HOLE)
                while offset < end:
                    piece = os.pread(read, min(_PIECE, end - offset), offset)
                    if not piece:
                        raise FormatError(f"{source}: it became shorter while it was copied")
                    durable.write_at(write, piece, offset)
                    offset += len(piece)
            durable.sync(write)
        finally:
            os.close(write)
    finally:
        os.close(read)
