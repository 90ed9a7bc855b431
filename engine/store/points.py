# SPDX-License-Identifier: MIT
"""The restore points of a repository: begin, commit, abort, list.

A point in the making lies in `<job>/<vm>/.partial-<point>`; the process that began it holds a lock (flock) on that
folder, which the kernel drops when the process ends. Commit checks everything, syncs it, and renames the folder: only
that rename makes the point visible. A partial folder whose lock is free belongs to nobody: the next begin removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from engine.errors import InputError, VadplabError
from engine.store import durable
from engine.store.digests import DigestTable
from engine.store.errors import FormatError, PointBusy, PointNotFound, StoreError, Unfinished, from_write_error
from engine.store.manifest import POINT_ID, Manifest
from engine.store.reader import Qcow2Reader
from engine.store.verify import walk

PARTIAL = ".partial-"


def new_point_id(now: datetime | None = None) -> str:
    """A new id, for example `20261125T071500Z-3f2a`: UTC time and four random hexadecimal digits."""
    return f"{(now or datetime.now(UTC)).astimezone(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:4]}"


def folder_name(name: str) -> str:
    """A job's or VM's name as a folder name: what is not a letter, digit, `-`, `_` or inner `.` is percent-encoded."""
    if not name or len(name) > 80:
        raise InputError(f"a name must have 1 to 80 characters: {name[:80]!r}")
    encoded = quote(name, safe="")
    return re.sub(r"^\.", "%2E", encoded).replace("~", "%7E")


@dataclass(frozen=True, slots=True)
class Point:
    """A visible restore point: its folder and manifest, or what is wrong with it."""

    folder: Path
    manifest: Manifest | None
    error: str | None = None

    def summary(self) -> dict[str, Any]:
        """For lists: job, vm, point, created, consistency, size and stored (bytes), disks, error."""
        manifest = self.manifest
        if manifest is None:
            return {"point": self.folder.name, "folder": str(self.folder), "error": self.error}
        return {
            "job": manifest.job,
            "vm": manifest.vm.name,
            "uuid": manifest.vm.uuid,
            "point": manifest.point,
            "created": manifest.created.isoformat(),
            "kind": manifest.kind,
            "consistency": manifest.consistency,
            "session": manifest.session,
            "size": sum(disk.capacity for disk in manifest.disks),
            "stored": sum(disk.stored for disk in manifest.disks),
            "disks": [disk.model_dump() for disk in manifest.disks],
            "folder": str(self.folder),
            "error": None,
        }


@dataclass(slots=True)
class _Making:
    folder: Path
    lock: int
    session: str | None


class Points:
    """The restore points below `repository`. Thread-safe; keep one for the life of the process that holds the locks."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self._making: dict[tuple[str, str, str], _Making] = {}
        self._guard = threading.Lock()

    def begin(self, job: str, vm: str, point: str, *, session: str | None = None) -> Path:
        """Makes the folder of a new point and returns it; abandoned folders of the same VM are removed first.

        Raises:
            PointBusy: that id is being made or exists. InputError: not a point id, or an empty name.
        """
        parent = self._parent(job, vm, point)
        with self._guard:
            try:
                self._make_parents(parent)
                self._remove_abandoned(parent)
                folder = parent / f"{PARTIAL}{point}"
                if (parent / point).exists() or folder.exists():
                    raise PointBusy(f"restore point {point} of {vm} exists or is being made by another session")
                durable.make_folder(folder)
            except OSError as exc:
                raise from_write_error(exc, str(parent)) from exc
            lock = _lock(folder)
            if lock is None:
                raise PointBusy(f"restore point {point} of {vm} was taken by another session")
            self._making[job, vm, point] = _Making(folder, lock, session)
            return folder

    def commit(self, job: str, vm: str, point: str, manifest: dict[str, Any] | Manifest) -> Path:
        """Checks the point's files against its manifest, syncs everything, and makes the point visible.

        The movers verified every block before they wrote a digest file (`engine.store.target`); commit binds manifest, digest
        files and disk files together and walks the structure of each disk.

        Raises:
            Unfinished: nothing was begun under that name, or a file is missing or differs from the manifest.
        """
        with self._guard:
            making = self._making.get((job, vm, point))
            if making is None:
                raise Unfinished(f"restore point {point} of {vm}: this process has not begun it")
            checked = manifest if isinstance(manifest, Manifest) else Manifest.parse(manifest)
            if (checked.job, checked.vm.name, checked.point) != (job, vm, point):
                raise Unfinished(f"restore point {point} of {vm}: the manifest names another point")
            _check_files(making.folder, checked)
            final = making.folder.parent / point
            try:
                checked.write(making.folder)
                durable.sync_folder(making.folder)
                durable.rename(making.folder, final)
                durable.sync_folder(final.parent)
            except OSError as exc:
                raise from_write_error(exc, str(making.folder)) from exc
            del self._making[job, vm, point]
            os.close(making.lock)
            return final

    def abort(self, job: str, vm: str, point: str) -> None:
        """Removes a point in the making; harmless when there is none."""
        with self._guard:
            self._drop((job, vm, point))

    def abort_session(self, session: str) -> list[str]:
        """Removes every point that `session` has not committed; returns their ids."""
        with self._guard:
            keys = [key for key, making in self._making.items() if making.session == session]
            for key in keys:
                self._drop(key)
            return [key[2] for key in keys]

    def close(self) -> None:
        """Removes everything in the making and gives the locks back."""
        with self._guard:
            for key in list(self._making):
                self._drop(key)

    def list(self) -> list[Point]:
        """Every visible restore point, oldest first; one whose manifest is damaged is listed with its error."""
        found = []
        for folder in sorted(self._visible(), key=lambda path: (path.name, str(path))):
            try:
                found.append(Point(folder, Manifest.load(folder)))
            except FormatError as exc:
                found.append(Point(folder, None, exc.message))
        return found

    def find(self, point: str, *, vm: str | None = None) -> Point:
        """The visible point with that id (or its unambiguous beginning), of that VM where ids repeat.

        Raises:
            PointNotFound: none, or several.
        """
        matches = [p for p in self.list() if p.folder.name == point or (point and p.folder.name.startswith(point))]
        if any(p.folder.name == point for p in matches):
            matches = [p for p in matches if p.folder.name == point]
        if vm is not None:
            matches = [p for p in matches if p.manifest and p.manifest.vm.name == vm]
        if len(matches) != 1:
            raise PointNotFound(f"restore point {point}: " + ("not found" if not matches else f"{len(matches)} match"))
        return matches[0]

    def free_bytes(self) -> int:
        """Space that is left for new points."""
        usage = os.statvfs(self.repository)
        return usage.f_bavail * usage.f_frsize

    def _parent(self, job: str, vm: str, point: str) -> Path:
        if not POINT_ID.fullmatch(point):
            raise InputError(f"not a restore point id: {point!r} (for example 20261125T071500Z-3f2a)")
        return self.repository / folder_name(job) / folder_name(vm)

    def _make_parents(self, parent: Path) -> None:
        if not self.repository.is_dir():
            raise StoreError(f"repository {self.repository}: no such folder")
        for folder in (parent.parent, parent):
            if not folder.is_dir():
                with contextlib.suppress(FileExistsError):
                    durable.make_folder(folder)

    def _remove_abandoned(self, parent: Path) -> None:
        for folder in parent.glob(f"{PARTIAL}*"):
            lock = _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)

    def _drop(self, key: tuple[str, str, str]) -> None:
        making = self._making.pop(key, None)
        if making is not None:
            shutil.rmtree(making.folder, ignore_errors=True)
            os.close(making.lock)

    def _visible(self) -> Iterator[Path]:
        for folder in self.repository.glob("*/*/*"):
            if folder.is_dir() and POINT_ID.fullmatch(folder.name):
                yield folder


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None when another process (or this one) holds it, or it is gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
    except OSError:
        os.close(fd)
        return None


def _check_files(folder: Path, manifest: Manifest) -> None:
    for disk in manifest.disks:
        what = f"restore point {manifest.point}, {disk.file}"
        try:
            with Qcow2Reader(folder / disk.file) as reader:
                if reader.size != disk.capacity or reader.length != disk.stored:
                    raise Unfinished(f"{what}: its size differs from the manifest")
                problems = walk(reader)
            root = DigestTable.load(folder / disk.digests, disk.capacity).root()
        except VadplabError as exc:
            raise Unfinished(f"{what}: {exc.message}") from exc
        if problems:
            raise Unfinished(f"{what}: {problems[0]}")
        if root != disk.root:
            raise Unfinished(f"{what}: its digests differ from the manifest")
