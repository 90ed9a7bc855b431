# SPDX-License-Identifier: MIT
"""The file that a disk is restored to: sparse, written past the page cache where that is possible, visible when complete.

Writes through the page cache are held back by whatever else is dirty in it; whole pages from aligned memory are not (disks
reference sections 4 and 6). Each thread gathers neighbouring clusters in a *run* of its own and writes them at once.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

from engine.errors import InputError
from engine.store import durable
from engine.store.clusters import CLUSTER, DIGEST, Unpacker, matches
from engine.store.errors import Damaged, FormatError

_PAGE = 4096
_ARENA = 4 << 20
Piece = bytes | memoryview


class FileNotWritten(InputError):
    """The file to restore to cannot be written."""

    code = "store.target"
    exit_code = 1
    symptom = "cannot be written"
    advice = "Name a file in a folder that exists, on a file system with enough space; nothing was left behind."


class SparseFile:
    """A new file of `size` bytes that appears under its name only when it is complete: holes where the disk has zeros.

    `put` and `run` may be called by several threads, each for clusters of its own.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.written = 0
        self.clusters = 0
        self._counting = threading.Lock()
        self._runs = threading.local()
        self._part = path.with_name(f"{path.name}.part")
        self._direct = -1
        try:
            self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._fd, size)
            self._direct = _open_direct(self._part)
        except OSError as exc:
            raise _refused(exc, self._part) from exc

    def put(self, first: int, lengths: list[int], digests: bytes, payload: memoryview) -> None:
        """Writes the clusters of a batch after checking each against its digest.

        Raises:
            Damaged: naming the offset. FormatError: the batch lies outside the file.
        """
        run = self.run()
        if first < 0 or (first + len(lengths) - 1) * CLUSTER >= max(self.size, 1):
            raise FormatError(f"clusters at {first} lie outside a disk of {self.size} bytes")
        for position, data in run.unpacker.unpack(lengths, payload):
            digest = digests[position * DIGEST : (position + 1) * DIGEST]
            if not matches(data, digest):
                offset = (first + position) * CLUSTER
                raise Damaged(f"{self.path.name}: received data at offset {offset} does not match its digest")
            run.add(first + position, data)
        run.write()

    def run(self) -> Run:
        """This thread's run, empty."""
        found: Run | None = getattr(self._runs, "run", None)
        if found is None:
            found = self._runs.run = Run(self)
        found.clear()
        return found

    def write(self, data: memoryview, offset: int, clusters: int) -> None:
        """Writes so many clusters that were checked already; past the page cache where offset and memory allow it."""
        data = data[: self.size - offset]
        whole = len(data) // _PAGE * _PAGE if self._direct >= 0 and offset % _PAGE == 0 else 0
        try:
            if whole:
                durable.write_at(self._direct, data[:whole], offset)
            if whole < len(data):  # the end of a disk that is not of whole pages
                durable.write_at(self._fd, data[whole:], offset + whole)
        except OSError as exc:
            raise _refused(exc, self._part) from exc
        with self._counting:
            self.written += len(data)
            self.clusters += clusters

    def finish(self) -> None:
        """Syncs the file and gives it its name."""
        try:
            durable.sync(self._fd)
            self._close()
            self._part.replace(self.path)
        except OSError as exc:
            raise _refused(exc, self.path) from exc

    def discard(self) -> None:
        """Removes the unfinished file; harmless after `finish`."""
        if self._fd >= 0:
            self._close()
            self._part.unlink(missing_ok=True)

    def _close(self) -> None:
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1


class Run:
    """Neighbouring clusters, gathered in memory that one write can take; of one thread. The last one may stay: `write` ends it.

    A cluster is copied at once: many of them held together are memory that is given back, and had anew, for each write.
    """

    def __init__(self, file: SparseFile) -> None:
        self.unpacker = Unpacker()
        self._file = file
        self._arena = memoryview(mmap.mmap(-1, _ARENA))
        self.clear()

    def clear(self) -> None:
        """Forgets what was gathered."""
        self._first = self._count = 0

    def add(self, number: int, data: Piece) -> None:
        """Gathers cluster `number`; what was gathered is written first when this one does not lie behind it."""
        size = len(data)
        if self._count and (number != self._first + self._count or (self._count + 1) * size > len(self._arena)):
            self.write()
        if not self._count:
            self._first = number
        self._arena[self._count * size : (self._count + 1) * size] = data
        self._count += 1

    def write(self) -> None:
        """Writes what was gathered."""
        if self._count:
            self._file.write(self._arena[: self._count * CLUSTER], self._first * CLUSTER, self._count)
            self.clear()


def _open_direct(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a file system without O_DIRECT (tmpfs)
            raise
        return -1


def _refused(exc: OSError, path: Path) -> FileNotWritten:
    return FileNotWritten(f"{path}: {exc.strerror or exc}")
