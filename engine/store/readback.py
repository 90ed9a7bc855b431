# SPDX-License-Identifier: MIT
"""Reading a file back while it is still being written, so that verification overlaps with the stream.

One thread follows the writer: as soon as a batch was handed to the device it is read from there again (O_DIRECT where the
writer uses it, so past the page cache), with what was written behind it as far as the arena holds it, since a read takes about
as long for a batch as for several. Every frame is expanded, and every cluster is compared with the digest that was taken
where the source was read. The same bytes give the digests of the file's blocks. What is read back is read before the final
sync, as it would be from a device's own cache after it; the sync's errors are the writer's.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.store.blocks import BLOCK, BlockHasher
from engine.store.clusters import CLUSTER, DIGEST, Unpacker, check
from engine.store.errors import Damaged, FormatError, StoreError, from_write_error
from engine.store.segments import ALIGNMENT

_ARENA = 2 << 20
_END = (0, 0, 0, (), (), b"")
DEADLINE = 600.0

Expected = tuple[int, int, int, Sequence[int], Sequence[int], bytes]


class ReadBack:
    """Checks a file that is being written from offset `start` (one cluster) on.

    Args:
        path, direct: the file, and whether to read past the page cache.
        wait_written: blocks until everything before an offset was written, and tells how much was; raises when that will not happen.
    """

    def __init__(self, path: Path, *, start: int, direct: bool, wait_written: Callable[[int], int]) -> None:
        self.path = path
        self.damaged: list[int] = []
        self._wait = wait_written
        self._position = start
        self._hasher = BlockHasher()
        self._unpacker = Unpacker()
        self._arena = memoryview(mmap.mmap(-1, _ARENA))
        self._held = (0, 0)  # what the arena holds of the file
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
        except OSError as exc:
            raise from_write_error(exc, path.name) from exc
        self._queue: queue.SimpleQueue[Expected] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="read-back", daemon=True)
        self._thread.start()

    def expect(self, end: int, first: int, lengths: Sequence[int], places: Sequence[int], digests: bytes) -> None:
        """The next bytes of the file, up to `end`, hold this batch: clusters from `first` on at `places`."""
        self._queue.put((end, len(lengths), first, array("L", lengths), array("Q", places), digests))

    def finish(self, length: int) -> bytes:
        """Waits for the checks, reads the rest of the finished file of `length` bytes; the digests of all its blocks.

        Raises:
            Damaged: a cluster is not what was sent. StoreError: the device failed.
        """
        self._queue.put(_END)
        self._thread.join(DEADLINE)
        if self._thread.is_alive():
            raise StoreError(f"{self.path.name}: the repository's disk did not return what was written in {DEADLINE} s")
        if self._error is not None:
            raise self._error
        if self.damaged:
            offsets = ", ".join(str(cluster * BLOCK) for cluster in self.damaged[:16])
            raise Damaged(f"{self.path.name}, read back after it was written: damaged data at offset {offsets}")
        first = BlockHasher()
        first.update(self._read(0, min(BLOCK, length), length))
        while self._position < length:
            end = min(self._position + _ARENA // 2, length)
            self._take(self._read(self._position, end, length))
        return first.finish() + self._hasher.finish()

    def close(self) -> None:
        """Ends the thread; harmless when called twice."""
        self._stopped = True
        self._queue.put(_END)
        self._thread.join(DEADLINE)
        if self._fd >= 0 and not self._thread.is_alive():
            os.close(self._fd)
            self._fd = -1

    def _run(self) -> None:
        try:
            while (batch := self._queue.get()) is not _END and not self._stopped:
                self._check(batch)
        except BaseException as exc:
            self._error = exc

    def _check(self, batch: Expected) -> None:
        end, _, first, lengths, places, digests = batch
        begin = self._position
        data = self._written(begin, end)
        self._take(data)
        for position, (length, place) in enumerate(zip(lengths, places, strict=True)):
            if not length:
                continue
            piece = data[place - begin : place - begin + length]
            digest = digests[position * DIGEST : (position + 1) * DIGEST]
            try:
                right = check(piece if length == CLUSTER else self._unpacker.expand(piece), digest)
            except FormatError:
                right = False
            if not right:
                self.damaged.append(first + position)

    def _take(self, data: memoryview) -> None:
        self._hasher.update(data)
        self._position += len(data)

    def _written(self, begin: int, end: int) -> memoryview:
        """Bytes `begin`..`end` of the file once they were written; the arena then holds what was written behind them too."""
        low, high = self._held
        if not low <= begin <= end <= high:
            written = self._wait(-(-end // ALIGNMENT) * ALIGNMENT)
            low = begin // ALIGNMENT * ALIGNMENT
            high = max(end, min(low + _ARENA, written // ALIGNMENT * ALIGNMENT))
            self._read(low, high, None)
            self._held = low, high
        return self._arena[begin - low : end - low]

    def _read(self, begin: int, end: int, length: int | None) -> memoryview:
        """Bytes `begin`..`end` of the file; whole pages are read, except at the end of a finished file (`length`)."""
        low, high = begin // ALIGNMENT * ALIGNMENT, -(-end // ALIGNMENT) * ALIGNMENT
        if high - low > len(self._arena):
            self._arena = memoryview(mmap.mmap(-1, high - low))
        at = low
        while at < end:
            try:
                count = os.preadv(self._fd, [self._arena[at - low : high - low]], at)
            except OSError as exc:
                raise from_write_error(exc, f"{self.path.name}, read back at offset {at}") from exc
            if not count:
                raise Damaged(f"{self.path.name}, read back after it was written: ends at offset {at}")
            at += count
            if at % ALIGNMENT and at != length:
                at = at // ALIGNMENT * ALIGNMENT
        return self._arena[begin - low : end - low]


def discard(readback: ReadBack) -> None:
    """Ends a check whose result nobody wants any more."""
    with contextlib.suppress(Exception):
        readback.close()
