# SPDX-License-Identifier: MIT
"""The restore points of a repository: begin, commit, abort, list.

A point in the making lies in `<job>/<vm>/.partial-<point>`; the process that began it holds a lock (flock) on that
folder, which the kernel drops when the process ends. Commit checks everything, syncs it, and renames the folder: only
that rename makes the point visible. A partial folder whose lock is free belongs to nobody: the next begin removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from engine.errors import InputError
from engine.store import checks, durable, locks, marker, space
from engine.store.errors import (
    FormatError,
    ParentUnusable,
    PointBusy,
    PointNotFound,
    StoreFull,
    Unfinished,
    from_write_error,
)
from engine.store.manifest import POINT_ID, Kind, Manifest

PARTIAL = ".partial-"
MERGED = ".merge-"
REMOVED = ".removed-"
HIDDEN = (PARTIAL, MERGED, REMOVED)
"""Beginnings of the names of folders that are not visible; one without a living owner is rubbish."""


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
            "parent": manifest.parent,
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
    kind: Kind
    parent: Manifest | None
    held: contextlib.ExitStack
    reserved: int

    def release(self) -> None:
        os.close(self.lock)
        self.held.close()


class Points:
    """The restore points below `repository`. Thread-safe; keep one for the life of the process that holds the locks."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self._making: dict[tuple[str, str, str], _Making] = {}
        self._guard = threading.Lock()

    def begin(
        self,
        job: str,
        vm: str,
        point: str,
        *,
        kind: Kind = "full",
        parent: str | None = None,
        estimate: int = 0,
    ) -> Path:
        """Makes the folder of a new point and returns it; abandoned folders of the same VM are removed first.

        Args:
            kind, parent: `full`, or `incremental` on the visible point `parent` of the same job and VM. Its chain stays locked
                against merging, and against another incremental, until commit or abort.
            estimate: bytes that the point will take (`space.estimate`); kept free for it among the points of this process.

        Raises:
            PointBusy: that id is being made or exists. InputError: not a point id, or an empty name.
            ParentUnusable: the parent is missing, damaged, half-written or not the newest of its chain.
            ChainLocked: somebody adds to or merges this chain. StoreFull: the estimate does not fit.
            ReadOnlyRepository, RepositoryGone.
        """
        if (kind == "incremental") != (parent is not None) or kind not in ("full", "incremental"):
            raise InputError(f"a new restore point is full, or incremental with a parent; not {kind} with {parent}")
        folder_of_vm = self._parent(job, vm, point)
        with self._guard, contextlib.ExitStack() as held:
            try:
                self._make_parents(folder_of_vm)
                remove_abandoned(folder_of_vm)
                folder = folder_of_vm / f"{PARTIAL}{point}"
                if (folder_of_vm / point).exists() or folder.exists():
                    raise PointBusy(f"restore point {point} of {vm} exists or is being made by another session")
                held.enter_context(locks.append(folder_of_vm, exclusive=parent is not None))
                below = None
                if parent is not None:
                    if not POINT_ID.fullmatch(parent):
                        raise ParentUnusable(f"{parent!r} is not the id of a visible restore point")
                    held.enter_context(locks.chain(folder_of_vm))
                    below = checks.require_usable_parent(folder_of_vm / parent)
                self._require_space(estimate)
                durable.make_folder(folder)
            except OSError as exc:
                raise from_write_error(exc, str(folder_of_vm)) from exc
            lock = locks.folder_lock(folder)
            if lock is None:
                raise PointBusy(f"restore point {point} of {vm} was taken by another session")
            self._making[job, vm, point] = _Making(folder, lock, kind, below, held.pop_all(), estimate)
            return folder

    def commit(self, job: str, vm: str, point: str, manifest: dict[str, Any] | Manifest) -> Path:
        """Checks the point's files against its manifest, syncs everything, and makes the point visible.

        The movers verified every block before they wrote the digest files (`engine.store.target`); commit binds manifest,
        digest files and disk files together, walks the structure of each disk, and fills in what only the repository knows
        (kind and parent as begun, digests of the files, counts).

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
            if checked.parent is not None and (making.parent is None or checked.parent != making.parent.point):
                raise Unfinished(f"restore point {point} of {vm}: it was not begun on {checked.parent}")
            final = making.folder.parent / point
            try:
                checks.completed(making.folder, checked, making.kind, making.parent).write(making.folder)
                durable.sync_folder(making.folder)
                durable.rename(making.folder, final)
                durable.sync_folder(final.parent)
            except OSError as exc:
                raise from_write_error(exc, str(making.folder)) from exc
            del self._making[job, vm, point]
            making.release()
            return final

    def abort(self, job: str, vm: str, point: str) -> None:
        """Removes a point in the making; harmless when there is none."""
        with self._guard:
            self._drop((job, vm, point))

    def close(self) -> None:
        """Removes everything in the making and gives the locks back."""
        with self._guard:
            for key in list(self._making):
                self._drop(key)

    def list(self) -> list[Point]:
        """Every visible restore point, oldest first; one whose manifest is damaged is listed with its error."""
        marker.require(self.repository)
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

    def vm_folder(self, job: str, vm: str) -> Path:
        """The folder for the points of one VM of one job, made where it is missing. Raises StoreError."""
        folder = self.repository / folder_name(job) / folder_name(vm)
        try:
            self._make_parents(folder)
        except OSError as exc:
            raise from_write_error(exc, str(folder)) from exc
        return folder

    def folder_of(self, job: str, vm: str) -> Path:
        """The folder of the points of one VM of one job. Raises PointNotFound when there is none."""
        folder = self.repository / folder_name(job) / folder_name(vm)
        if not folder.is_dir():
            raise PointNotFound(f"there are no restore points of {vm} of job {job}")
        return folder

    def of_vm(self, job: str, vm: str) -> Sequence[Point]:
        """The visible points of one VM of one job, oldest first."""
        folder = self.repository / folder_name(job) / folder_name(vm)
        return [point for point in self.list() if point.folder.parent == folder]

    def newest(self, job: str, vm: str) -> Point | None:
        """The point on which the next incremental could stand: the newest one, unless its manifest is damaged."""
        found = self.of_vm(job, vm)
        return found[-1] if found and found[-1].manifest is not None else None

    def estimate(self, job: str, vm: str, *, data: int, capacity: int) -> int:
        """Bytes for a new point of that VM in which `data` bytes of disks of `capacity` bytes are sent."""
        history = [point.manifest for point in self.of_vm(job, vm) if point.manifest is not None]
        return space.estimate(data, capacity, history)

    def free_bytes(self) -> int:
        """Space that is left for new points: what is free, less what the points in the making have reserved."""
        marker.require(self.repository)
        try:
            free = space.free(self.repository)
        except OSError as exc:
            raise from_write_error(exc, f"repository {self.repository}") from exc
        reserved = sum(max(0, m.reserved - space.used(m.folder)) for m in list(self._making.values()) if m.reserved)
        return max(0, free - reserved)

    def _parent(self, job: str, vm: str, point: str) -> Path:
        if not POINT_ID.fullmatch(point):
            raise InputError(f"not a restore point id: {point!r} (for example 20261125T071500Z-3f2a)")
        return self.repository / folder_name(job) / folder_name(vm)

    def _make_parents(self, parent: Path) -> None:
        marker.require(self.repository, first_use=True)
        for folder in (parent.parent, parent):
            if not folder.is_dir():
                with contextlib.suppress(FileExistsError):
                    durable.make_folder(folder)

    def _require_space(self, estimate: int) -> None:
        if estimate and estimate > (free := self.free_bytes()):
            raise StoreFull(
                f"repository {self.repository}: about {estimate >> 20} MiB are needed, {free >> 20} MiB are free"
                " and not reserved by other sessions"
            )

    def _drop(self, key: tuple[str, str, str]) -> None:
        making = self._making.pop(key, None)
        if making is not None:
            durable.remove_tree(making.folder)
            making.release()

    def _visible(self) -> Iterator[Path]:
        for folder in self.repository.glob("*/*/*"):
            if folder.is_dir() and POINT_ID.fullmatch(folder.name):
                yield folder


def remove_abandoned(folder: Path) -> None:
    """Removes what dead processes left in a VM's folder: points in the making, and what was to be removed."""
    for path in folder.glob(".*-*"):
        if path.name.startswith(HIDDEN) and (lock := locks.folder_lock(path)) is not None:
            durable.remove_tree(path)
            os.close(lock)
