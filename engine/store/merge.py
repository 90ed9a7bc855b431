# SPDX-License-Identifier: MIT
"""Merging: a point of a chain takes over all data of the points below it and becomes a synthetic full, without the source.

The new files are built aside in `.merge-<point>`, every cluster checked against its digest on the way and read back from the
disk, as in a backup. Then the two folders exchange their names in one step: at every instant the name leads to a complete
point with the same content, so points above it (whose files name it) stay whole. Points that are no longer needed lose
their name by one rename before their files are removed. What a crash leaves behind has a hidden name and no owner; the
next begin or merge removes it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.store import checks, durable, locks, space
from engine.store.errors import Damaged, PointNotFound, StoreFull, from_write_error
from engine.store.manifest import Manifest
from engine.store.point_disk import PointDisk
from engine.store.points import MERGED, REMOVED, Points, remove_abandoned
from engine.store.target import TargetDisk

WAIT = 30.0
"""Seconds to wait until readers of the chain are done."""


@contextlib.contextmanager
def merging(folder: Path, *, wait: float = WAIT) -> Iterator[Merging]:
    """Takes the right to change the chains in the VM folder `folder`; nobody else adds or merges meanwhile.

    Raises:
        ChainLocked: a point is being made, or a point is being read for longer than `wait` seconds.
    """
    with locks.append(folder, exclusive=True) as _, locks.chain(folder, exclusive=True, wait=wait) as lock:
        lock.change(exclusive=False, wait=wait)  # readers are let in while new files are built
        remove_abandoned(folder)
        yield Merging(folder, lock, wait)


class Merging:
    """The work on the chains of one VM folder while the locks are held (`merging`)."""

    def __init__(self, folder: Path, lock: locks.Lock, wait: float) -> None:
        self.folder = folder
        self._lock = lock
        self._wait = wait

    def consolidate(self, point: str) -> Path:
        """Turns the visible incremental `point` into a synthetic full with the same content; a full is left as it is.

        Raises:
            PointNotFound. Damaged: its data is damaged: it stays as it was. ChainLocked, StoreFull.
        """
        old = self.folder / point
        if not old.is_dir():
            raise PointNotFound(f"restore point {point}: not found")
        manifest = Manifest.load(old)
        if manifest.parent is None:
            return old
        new = self.folder / f"{MERGED}{point}"
        own: int | None = None
        try:
            self._require_space(manifest)
            durable.make_folder(new)
            own = locks.folder_lock(new)
            self._build(old, new, manifest)
            with self._exclusively():
                durable.exchange(new, old)
                durable.sync_folder(self.folder)
                durable.remove_tree(new)  # by now that is what the point was before
        except OSError as exc:
            raise from_write_error(exc, f"merge into restore point {point}") from exc
        finally:
            if own is not None:
                os.close(own)
            if new.is_dir():
                durable.remove_tree(new)
        return old

    def remove(self, points: Sequence[str]) -> None:
        """Removes visible points, in this order; each must have no visible point above it by then.

        Raises:
            Damaged: a point still stands on one of them; it was not removed. ChainLocked.
        """
        if not points:
            return
        with self._exclusively():
            for point in points:
                if above := checks.children(self.folder / point):
                    raise Damaged(f"restore point {point} is needed by {', '.join(above)} and was not removed")
                hidden = self.folder / f"{REMOVED}{point}"
                try:
                    durable.rename(self.folder / point, hidden)
                    durable.sync_folder(self.folder)
                except OSError as exc:
                    raise from_write_error(exc, f"restore point {point}") from exc
                durable.remove_tree(hidden)

    def _build(self, old: Path, new: Path, manifest: Manifest) -> None:
        for entry in manifest.disks:
            with PointDisk(old, entry.key, wait=self._wait) as source:
                with TargetDisk(new, entry.file, entry.capacity) as target:
                    for batch in source.batches():
                        target.add(batch.first, batch.lengths, batch.digests, memoryview(b"".join(batch.parts)))
                    stored = target.commit(root=entry.root)
            manifest = _replaced(manifest, entry.key, stored.stored)
        checks.completed(new, manifest, "synthetic-full", None).write(new)
        durable.sync_folder(new)

    def _require_space(self, manifest: Manifest) -> None:
        below = space.chain_bytes(self.folder, manifest)
        free = space.free(self.folder)
        if below > free:
            raise StoreFull(f"merging needs about {below >> 20} MiB, {free >> 20} MiB are free; nothing was changed")

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        self._lock.change(exclusive=True, wait=self._wait)
        try:
            yield
        finally:
            self._lock.change(exclusive=False, wait=self._wait)


def synthetic_full(points: Points, job: str, vm: str, point: str, *, wait: float = WAIT) -> Path:
    """Turns the visible incremental `point` into a synthetic full; the points below it stay as they are. Raises as `merging`."""
    with merging(points.folder_of(job, vm), wait=wait) as chain:
        return chain.consolidate(point)


def delete(points: Points, job: str, vm: str, point: str, *, wait: float = WAIT) -> None:
    """Removes one visible point; what the points directly above it need is merged into them first. Raises as `merging`."""
    with merging(points.folder_of(job, vm), wait=wait) as chain:
        if not (chain.folder / point).is_dir():
            raise PointNotFound(f"restore point {point}: not found")
        for above in checks.children(chain.folder / point):
            chain.consolidate(above)
        chain.remove([point])


def _replaced(manifest: Manifest, key: int, stored: int) -> Manifest:
    """The manifest with the new length of a disk's file; what else is new is filled in from the files."""
    fields = manifest.model_dump(by_alias=True) | {"kind": "synthetic-full", "parent": None}
    fresh = {"stored": stored, "blocks": None, "blocks_root": None, "parent_root": None}
    fields["disks"] = [disk | (fresh if disk["key"] == key else {"parent_root": None}) for disk in fields["disks"]]
    return Manifest.parse(fields)
