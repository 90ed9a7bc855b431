# SPDX-License-Identifier: MIT
"""The LUN: one sparse file in which every disk of the datastore lives.

*Allocator*: which LUN grains are taken; rebuilt at open from the maps that can be reached, so a grain reachable from no
map is free. *Pin*: a claim of a truth record on a grain whose digest is still to be taken; a pinned grain is neither
overwritten nor handed out, even when it was freed meanwhile.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from fakes.storage import grains
from fakes.storage.grains import GRAIN, REGION

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_ZEROS = memoryview(bytes(1 << 20))
Buffer = memoryview


class Lun:
    """The file `path` of `capacity` bytes (a multiple of 64 KiB), and its allocator. Safe to share between threads."""

    def __init__(self, path: Path, capacity: int) -> None:
        if capacity < GRAIN or capacity % GRAIN:
            raise ValueError(f"a LUN's capacity must be a multiple of 64 KiB: {capacity}")
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        held = os.fstat(self.fd).st_size
        if held > capacity:
            os.close(self.fd)
            raise ValueError(f"{path} holds {held} bytes: a LUN cannot shrink to {capacity}")
        os.ftruncate(self.fd, capacity)
        self.capacity = capacity
        self.grains = capacity // GRAIN
        self._used = bytearray(self.grains)
        self._free = self.grains
        self._cursor = 0
        self._lock = threading.Lock()
        self._orphans: set[int] = set()  # freed while pinned
        self.pins = array("H", bytes(2 * self.grains))
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)

    def close(self) -> None:
        """Closes the file."""
        os.close(self.fd)

    @property
    def free(self) -> int:
        """Bytes that can still be allocated."""
        return self._free * GRAIN

    # -- allocator ---------------------------------------------------------------------------------------------------

    def claim(self, taken: Iterable[int]) -> None:
        """Marks LUN grains as used (at open, from the maps)."""
        with self._lock:
            for grain in taken:
                if not self._used[grain]:
                    self._used[grain] = 1
                    self._free -= 1

    def claim_orphans(self, pinned: Iterable[int]) -> None:
        """Marks pinned grains that no map reaches any more (at open, after `claim`): the last pin frees them."""
        with self._lock:
            for grain in pinned:
                if not self._used[grain]:
                    self._used[grain] = 1
                    self._free -= 1
                    self._orphans.add(grain)

    def allocate(self, wanted: int, hint: int, slot: int) -> list[int]:
        """`wanted` LUN grains, contiguous where possible.

        Args:
            hint: the LUN grain that would continue a neighbour, or -1.
            slot: position of the first grain within its 1 MiB region, kept when a fresh region is opened.

        Raises:
            OSError: ENOSPC; nothing was allocated.
        """
        with self._lock:
            if wanted > self._free:
                raise OSError(errno.ENOSPC, "the datastore is full")
            found: list[int] = []
            at = hint
            for number in range(wanted):
                if not 0 <= at < self.grains or self._used[at]:
                    at = self._open_region((slot + number) % REGION)
                self._used[at] = 1
                found.append(at)
                at += 1
            self._free -= wanted
            return found

    def _open_region(self, slot: int) -> int:
        """A LUN grain at `slot` of a region of which nothing is used; without such a region, any free grain."""
        for start in (self._cursor, 0):
            at = start
            while (at := self._used.find(bytes(REGION), at)) >= 0:
                at = -(-at // REGION) * REGION
                if self._used[at : at + REGION] == bytes(REGION):
                    self._cursor = at + REGION
                    return at + slot
        return self._used.find(b"\0")

    def release(self, freed: list[int]) -> None:
        """Gives LUN grains back. Their blocks leave the file; a pinned one waits for its last pin."""
        with self._lock:
            self._orphans.update(grain for grain in freed if self.pins[grain])
            ready = [grain for grain in freed if not self.pins[grain]]
        self._discard(ready)

    def _discard(self, ready: list[int]) -> None:
        # The hole comes first: once a grain is marked free, another disk may already be writing to it.
        for first, length in grains.joined(sorted(ready)):
            if self._libc.fallocate(self.fd, _KEEP_SIZE | _PUNCH_HOLE, first * GRAIN, length * GRAIN) != 0:
                break  # the file system cannot punch holes: the space is reused all the same
        with self._lock:
            for grain in ready:
                self._used[grain] = 0
            self._free += len(ready)

    # -- pins --------------------------------------------------------------------------------------------------------

    def pin(self, wanted: Iterable[int]) -> None:
        """Claims grains for a truth record. Callers hold the VM's gate closed."""
        with self._lock:
            for grain in wanted:
                self.pins[grain] += 1

    def unpin(self, done: Iterable[int]) -> None:
        """Drops claims; grains freed meanwhile become available. Callers hold the lock of the disk they belong to."""
        ready = []
        with self._lock:
            for grain in done:
                self.pins[grain] -= 1
                if not self.pins[grain] and grain in self._orphans:
                    self._orphans.discard(grain)
                    ready.append(grain)
        self._discard(ready)

    # -- data --------------------------------------------------------------------------------------------------------

    def read(self, buffer: Buffer, position: int) -> None:
        """Fills `buffer` from byte `position` of the LUN, straight into the caller's memory."""
        done = 0
        while done < len(buffer):
            got = os.preadv(self.fd, [buffer[done:]], position + done)
            if got == 0:
                raise OSError(errno.EIO, f"{self.path.name} ends at {position + done}")
            done += got

    def write(self, buffers: list[Buffer], position: int) -> None:
        """Writes `buffers` one after the other from byte `position`."""
        while buffers:
            done = os.pwritev(self.fd, buffers, position)
            position += done
            while buffers and done >= len(buffers[0]):
                done -= len(buffers.pop(0))
            if done:
                buffers[0] = buffers[0][done:]

    def read_view(self, view: array[int], buffer: Buffer, offset: int) -> None:
        """Fills `buffer` from byte `offset` of the disk that `view` describes; holes give zeros."""
        for at, length, position in spans(view, offset, len(buffer)):
            if position >= 0:
                self.read(buffer[at : at + length], position)
            else:
                clear(buffer[at : at + length])

    def sync(self) -> None:
        """Makes what was written so far durable."""
        os.fdatasync(self.fd)


def spans(view: array[int], offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """`(start within the range, length, LUN byte position or -1 for a hole)`, contiguous grains joined."""
    end = offset + length
    at = offset
    while at < end:
        grain = at // GRAIN
        entry = view[grain]
        step = 1 if entry else 0
        following = grain + 1
        expected = entry + step
        last = (end - 1) // GRAIN
        while following <= last and view[following] == expected:
            following += 1
            expected += step
        stop = min(end, following * GRAIN)
        yield at - offset, stop - at, (entry - 1) * GRAIN + at % GRAIN if entry else -1
        at = stop


def clear(buffer: Buffer) -> None:
    """Zeroes `buffer`."""
    for at in range(0, len(buffer), len(_ZEROS)):
        part = buffer[at : at + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]


def zeros(length: int) -> Buffer:
    """`length` zero bytes (at most 1 MiB), shared: not to be written to."""
    return _ZEROS[:length].toreadonly()
