# SPDX-License-Identifier: MIT
"""Disk files attached to another VM of the datastore's hosts, which is HotAdd.

*Attachment*: one disk file, whom it is attached to, and vSphere's disk mode. `independent_nonpersistent`: writes go to
a throw-away layer that ends with the attachment (or with this process). `persistent`, `independent_persistent`: writes
go to the disk itself, which must be the top of a VM that is powered off. A file is attached once only, and while it is,
nothing may change what it shows or start its VM. Attachments are in the structure file: they survive a kill.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from fakes.core.fabric import FabricError
from fakes.storage.grains import GRAIN
from fakes.storage.lun import Buffer, zeros
from fakes.storage.structure import AttachmentRecord

NONPERSISTENT = "independent_nonpersistent"
MODES = (NONPERSISTENT, "persistent", "independent_persistent")
PREFIX = "attached"


class Attachments:
    """The attachments of a datastore, by path of the disk file. Its callers hold the store's lock."""

    def __init__(self, records: Iterable[AttachmentRecord], scratch: Path) -> None:
        self._scratch = scratch
        self._held = {each.path: Attachment(each, scratch) for each in records}

    def records(self) -> list[AttachmentRecord]:
        """What the structure file keeps."""
        return [each.record for each in self._held.values()]

    def all(self) -> list[Attachment]:
        """All attachments, oldest first."""
        return list(self._held.values())

    def check_free(self, paths: Iterable[str]) -> None:
        """FabricError `in-use` if one of these disk files is attached."""
        for path in paths:
            if path in self._held:
                raise FabricError("in-use", f"{path} is attached to {self._held[path].record.by}")

    def add(self, path: str, by: str, mode: str) -> Attachment:
        """Notes an attachment; FabricError `locked` if the file has one already, also of the same VM."""
        if path in self._held:
            raise FabricError("locked", f"{path} is attached to {self._held[path].record.by} already")
        made = self._held[path] = Attachment(AttachmentRecord(path, by, mode), self._scratch)
        return made

    def remove(self, path: str, by: str) -> Attachment:
        """Forgets an attachment; FabricError `not-found` if that VM does not have it. Call its `end` to end its I/O."""
        found = self._held.get(path)
        if found is None or found.record.by != by:
            raise FabricError("not-found", f"{path} is not attached to {by}")
        return self._held.pop(path)

    def restore(self, attachment: Attachment) -> None:
        """Undoes `remove`, when it could not be committed."""
        self._held[attachment.record.path] = attachment

    def by_export(self, name: str) -> Attachment | None:
        """The attachment whose export that is."""
        return next((each for each in self._held.values() if each.export == name), None)

    def close(self) -> None:
        """Ends all of them, in this process only."""
        for each in self._held.values():
            each.end()


class Attachment:
    """One attached disk file, and its throw-away layer once something was written."""

    def __init__(self, record: AttachmentRecord, scratch: Path) -> None:
        self.record = record
        self.layer = ThrowAway(scratch) if record.mode == NONPERSISTENT else None
        self.ended = False

    @property
    def export(self) -> str:
        """The name of its NBD export."""
        return f"{PREFIX}/{self.record.by}/{self.record.path}"

    def end(self) -> None:
        """From now on its I/O fails, as on a disk that was taken out."""
        self.ended = True
        if self.layer:
            self.layer.close()

    def shown(self) -> dict[str, Any]:
        """As the fabric shows it."""
        return {"path": self.record.path, "by": self.record.by, "mode": self.record.mode, "export": self.export}


class ThrowAway:
    """Grains written over a disk, in a nameless file; gone when it is closed."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._slots: dict[int, int] = {}

    def holds(self, first: int, last: int) -> Iterator[int]:
        """Grains of first..last (inclusive) that were written."""
        with self._lock:
            held = set(self._slots)
        return (grain for grain in range(first, last + 1) if grain in held)

    def overlay(self, buffer: Buffer, offset: int) -> None:
        """Puts what was written over `buffer`, which starts at byte `offset` of the disk."""
        for grain in self.holds(offset // GRAIN, (offset + len(buffer) - 1) // GRAIN):
            start, stop = _cut(grain, offset, len(buffer))
            with self._lock:
                if self._file is None:
                    raise OSError(errno.ESHUTDOWN, "the disk was detached")
                place = self._slots[grain] * GRAIN + start - grain * GRAIN
                if os.preadv(self._file.fileno(), [buffer[start - offset : stop - offset]], place) != stop - start:
                    raise OSError(errno.EIO, "the throw-away layer is cut short")

    def write(self, data: Buffer, offset: int, below: Any) -> None:
        """Keeps `data`, written at byte `offset`; `below(buffer, offset)` reads the disk underneath, up to its end."""
        with self._lock:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - it lives as long as the layer
            fd = self._file.fileno()
            for grain in range(offset // GRAIN, (offset + len(data) - 1) // GRAIN + 1):
                start, stop = _cut(grain, offset, len(data))
                if grain not in self._slots:
                    slot = len(self._slots)
                    whole = memoryview(bytearray(GRAIN))
                    below(whole, grain * GRAIN)
                    os.pwrite(fd, whole, slot * GRAIN)
                    self._slots[grain] = slot
                place = self._slots[grain] * GRAIN + start - grain * GRAIN
                os.pwrite(fd, data[start - offset : stop - offset], place)

    def zero(self, length: int, offset: int, below: Any) -> None:
        """Makes a range read as zero."""
        for at in range(offset, offset + length, 1 << 20):
            self.write(zeros(min(1 << 20, offset + length - at)), at, below)

    def close(self) -> None:
        """Throws everything away."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None
            self._slots.clear()


def _cut(grain: int, offset: int, length: int) -> tuple[int, int]:
    """The part of `[offset, offset + length)` that lies in a grain."""
    return max(offset, grain * GRAIN), min(offset + length, (grain + 1) * GRAIN)
