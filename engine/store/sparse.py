# SPDX-License-Identifier: MIT
"""The file that a disk is restored to: sparse, written past the page cache where that is possible, visible when complete.

Writes through the page cache are held back by whatever else is dirty in it; whole pages from aligned memory are not (disks
reference sections 4 and 6). Each thread gathers neighbouring clusters in an *arena* of its own and writes them at once.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from engine.errors import InputError
from engine.store import durable
from engine.store.clusters import DIGEST, ZERO_DIGEST, Unpacker
from engine.store.errors import Damaged, FormatError
from engine.store.verify import matches

_PAGE = 4096
_ARENA = 4 << 20
Piece = bytes | memoryview


class TargetFile(InputError):
    """The file to restore to cannot be written."""

    code = "store.target"
    exit_code = 1
    symptom = "cannot be written"
    advice = "Name a file in a folder that exists, on a file system with enough space; nothing was left behind."


class SparseFile:
    """A new file of `size` bytes that appears under its name only when it is complete: holes where the disk has zeros.

    `put` and `write` may be called by several threads, each for clusters of its own.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.written = 0
        self.blocks = 0
        self._counting = threading.Lock()
        self._arenas = threading.local()
        self._part = path.with_name(f"{path.name}.part")
        self._direct = -1
        try:
            self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._fd, size)
            self._direct = _open_direct(self._part)
        except OSError as exc:
            raise _refused(exc, self._part) from exc

    def put(self, first: int, lengths: list[int], digests: bytes, payload: memoryview, unpacker: Unpacker) -> None:
        """Writes the clusters of a batch after checking each against its digest.

        Raises:
            Damaged: naming the offset. FormatError: the batch lies outside the file.
        """
        if first < 0 or (first + len(lengths) - 1) * unpacker.cluster >= max(self.size, 1):
            raise FormatError(f"clusters at {first} lie outside a disk of {self.size} bytes")
        entries = [digests[at : at + DIGEST] for at in range(0, len(digests), DIGEST)]
        run: list[Piece] = []
        begin = first
        for position, data in unpacker.unpack(lengths, payload):
            cluster = first + position
            if entries[position] == ZERO_DIGEST or not matches(bytes(data), entries[position]):
                offset = cluster * unpacker.cluster
                raise Damaged(f"{self.path.name}: received data at offset {offset} does not match its digest")
            if run and cluster != begin + len(run):
                self.write(begin, run)
                run = []
            if not run:
                begin = cluster
            run.append(data)
        if run:
            self.write(begin, run)

    def write(self, first: int, clusters: Sequence[Piece]) -> None:
        """Writes neighbouring clusters that were checked already."""
        cluster = len(clusters[0])
        per_arena = max(1, _ARENA // cluster)
        for at in range(0, len(clusters), per_arena):
            part = clusters[at : at + per_arena]
            offset = (first + at) * cluster
            arena = self._arena(len(part) * cluster)
            for number, data in enumerate(part):
                arena[number * cluster : (number + 1) * cluster] = data
            length = min(len(part) * cluster, self.size - offset)
            try:
                self._write(arena[:length], offset)
            except OSError as exc:
                raise _refused(exc, self._part) from exc
            with self._counting:
                self.written += length
                self.blocks += len(part)

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

    def _write(self, data: memoryview, offset: int) -> None:
        whole = len(data) // _PAGE * _PAGE if self._direct >= 0 and offset % _PAGE == 0 else 0
        if whole:
            durable.write_at(self._direct, data[:whole], offset)
        if whole < len(data):  # the end of a disk that is not of whole pages
            durable.write_at(self._fd, data[whole:], offset + whole)

    def _arena(self, size: int) -> memoryview:
        found: memoryview | None = getattr(self._arenas, "view", None)
        if found is None or len(found) < size:
            found = self._arenas.view = memoryview(mmap.mmap(-1, max(size, _ARENA)))
        return found

    def _close(self) -> None:
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1


def _open_direct(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a file system without O_DIRECT (tmpfs)
            raise
        return -1


def _refused(exc: OSError, path: Path) -> TargetFile:
    return TargetFile(f"{path}: {exc.strerror or exc}")
