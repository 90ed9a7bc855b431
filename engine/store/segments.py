# SPDX-License-Identifier: MIT
"""Appending to a file through aligned segments and one writer thread.

Nouns: *segment* = a page-aligned piece of one memory arena that is reused for the life of the writer (fresh memory is
slow); the *writer thread* is the only one that writes. With O_DIRECT the page cache is passed by, which was measured a
third faster for streams and leaves later read-backs to come from the device (disks reference sections 4 and 7).
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import queue
import threading
from pathlib import Path
from types import TracebackType

from engine.store import durable
from engine.store.errors import StoreError, from_write_error

ALIGNMENT = 4096
SEGMENT = 4 << 20
SEGMENTS = 4
WRITE_DEADLINE = 120.0


class SegmentWriter:
    """Appends bytes to a new file, beginning at `start`; the bytes before it are left for `header`.

    Not thread-safe: one thread appends. A failed write raises `StoreError` at the next append or at `finish`.
    """

    def __init__(self, path: Path, *, start: int = 0, segment: int = SEGMENT) -> None:
        if start >= segment or segment % ALIGNMENT:
            raise ValueError("start must lie in the first segment, and a segment must be a multiple of 4096 bytes")
        self.path = path
        self._fd, self.direct = _open_direct(path)
        self._arena = mmap.mmap(-1, segment * SEGMENTS)
        with contextlib.suppress(OSError):
            self._arena.madvise(mmap.MADV_HUGEPAGE)
        self._view = memoryview(self._arena)
        self._segment = segment
        self._free: queue.Queue[int] = queue.Queue()
        self._full: queue.Queue[tuple[int, int, int] | None] = queue.Queue()
        for index in range(SEGMENTS):
            self._free.put(index)
        self._error: BaseException | None = None
        self._written = 0
        self._ended = False
        self._progress = threading.Condition()
        self._current = self._free.get()
        self._base = 0
        self._fill = start
        self._thread = threading.Thread(target=self._write_all, name="segment-writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def position(self) -> int:
        """Offset in the file of the next byte."""
        return self._base + self._fill

    def wait_written(self, offset: int) -> int:
        """Returns when everything before `offset` was handed to the device: how many bytes were, at least `offset`.

        Returns at the latest when the writer ends. May be called from any thread. How long it takes is up to whoever appends.

        Raises:
            StoreError: writing failed, or the writer was closed before.
        """
        with self._progress:
            self._progress.wait_for(lambda: self._written >= offset or self._ended)
            if self._written >= offset:
                return self._written
        self._check()
        raise StoreError(f"{self.path.name}: the writer ended")

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Copies `data` into the stream."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            count = min(len(view) - done, self._segment - self._fill)
            at = self._current * self._segment + self._fill
            self._view[at : at + count] = view[done : done + count]
            self._fill += count
            done += count
            if self._fill == self._segment:
                self._hand_over()

    def pad(self, alignment: int) -> None:
        """Appends zeros up to a multiple of `alignment`."""
        self.append(bytes(-self.position % alignment))

    def finish(self) -> int:
        """Writes what is left; returns the file's length. Afterwards only `header` and `close` are valid."""
        length = self.position
        if self._fill:
            padded = self._fill + (-self._fill % ALIGNMENT)
            at = self._current * self._segment
            self._view[at + self._fill : at + padded] = bytes(padded - self._fill)
            self._full.put((self._current, padded, self._base))
            self._fill = 0
        self._stop()
        self._check()
        os.close(self._fd)
        self._fd = -1
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            durable.truncate(self._fd, length)
        except OSError as exc:
            raise from_write_error(exc, str(self.path)) from exc
        return length

    def header(self, data: bytes) -> None:
        """Writes `data` at offset 0 and syncs the whole file: the last act, after `finish`."""
        try:
            durable.write_at(self._fd, data, 0)
            durable.sync(self._fd)
        except OSError as exc:
            raise from_write_error(exc, str(self.path)) from exc

    def close(self) -> None:
        """Ends the thread and closes the file; harmless when called twice."""
        self._stop()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._view.release()
        with contextlib.suppress(BufferError):
            self._arena.close()

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._full.put(None)
            self._thread.join(WRITE_DEADLINE)
            if self._thread.is_alive():
                raise StoreError(
                    f"{self.path.name}: the repository's disk did not finish a write in {WRITE_DEADLINE} s"
                )

    def _hand_over(self) -> None:
        self._full.put((self._current, self._segment, self._base))
        self._base += self._segment
        self._fill = 0
        try:
            self._current = self._free.get(timeout=WRITE_DEADLINE)
        except queue.Empty:
            raise StoreError(
                f"{self.path.name}: the repository's disk did not finish a write in {WRITE_DEADLINE} s"
            ) from None
        self._check()

    def _check(self) -> None:
        if isinstance(self._error, OSError):
            raise from_write_error(self._error, str(self.path)) from self._error
        if self._error is not None:
            raise self._error

    def _write_all(self) -> None:
        while (item := self._full.get()) is not None:
            index, count, offset = item
            if self._error is None:
                try:
                    durable.write_at(
                        self._fd, self._view[index * self._segment : index * self._segment + count], offset
                    )
                except BaseException as exc:
                    self._error = exc
            with self._progress:
                if self._error is None:
                    self._written = offset + count
                else:
                    self._ended = True
                self._progress.notify_all()
            self._free.put(index)
        with self._progress:
            self._ended = True
            self._progress.notify_all()


def _open_direct(path: Path) -> tuple[int, bool]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o644), True
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise from_write_error(exc, str(path)) from exc
    # A file system without O_DIRECT (tmpfs) has created the file before it refused.
    path.unlink(missing_ok=True)
    try:
        return os.open(path, flags, 0o644), False
    except OSError as exc:
        raise from_write_error(exc, str(path)) from exc
