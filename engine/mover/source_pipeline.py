# SPDX-License-Identifier: MIT
"""The proxy's half of a backup: read, drop zeros, cut, hash, compress, send (steps 20 and 21).

What is read: the whole disk, its allocated areas where the source knows them, or the `ranges` that the caller names (what
changed, or what is in use). *Incremental*: clusters that are not sent are the parent's, so zeros are sent too (as length 0).
With a `Comparison`, clusters that are as in the parent are dropped after reading.

Two or three workers, each with two buffers of 1 MiB (while one is packed and sent, the next is being read), its own
compressor, and the shared data link (disks reference section 7).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import VadplabError
from engine.modes.source import Extent, Read, Source
from engine.mover.comparison import Comparison
from engine.mover.datalink import DataLink
from engine.mover.errors import DataProtocol, Stopped
from engine.mover.throttle import Throttle
from engine.store.clusters import BATCH, CLUSTER, CLUSTER_BITS, Packer
from engine.store.digests import DigestTable


@dataclass(slots=True)
class Counts:
    """Bytes of the disk: `passed` (read, or known not to be needed), `read`, and of these `zero`, `data`, `same` (as in the
    parent, not sent); `sent`: bytes on the wire; `clusters`: those sent, which are not zeros."""

    total: int
    passed: int = 0
    read: int = 0
    zero: int = 0
    data: int = 0
    same: int = 0
    sent: int = 0
    clusters: int = 0

    def to_dict(self) -> dict[str, int]:
        """As a message."""
        return asdict(self)


def pieces(extents: Iterable[Extent] | None, capacity: int, piece: int) -> Iterator[Extent]:
    """Cuts the allocated areas into reads of at most `piece` bytes on cluster boundaries; no cluster comes twice."""
    done = 0
    for offset, length in [(0, capacity)] if extents is None else extents:
        begin = max(offset // CLUSTER * CLUSTER, done)
        end = min(-(-(offset + length) // CLUSTER) * CLUSTER, capacity)
        while begin < end:
            count = min(end - begin, piece - begin % piece)
            yield begin, count
            begin += count
        done = max(done, begin)


class SourcePipeline:
    """Sends one disk over the link. `run` blocks; `counts` may be read meanwhile; `stop` ends it."""

    def __init__(
        self,
        source: Source,
        link: DataLink,
        *,
        throttle: Throttle,
        workers: int = 2,
        level: int = 1,
        ranges: Sequence[Extent] | None = None,
        incremental: bool = False,
        comparison: Comparison | None = None,
    ) -> None:
        self.counts = Counts(source.capacity)
        self._incremental = incremental or comparison is not None
        self._comparison = comparison
        self._source = source
        self._link = link
        self._throttle = throttle
        self._workers = workers
        self._level = level
        self._piece = BATCH << CLUSTER_BITS
        # What a source does not hold reads as zeros, and those matter where a parent lies below.
        extents = ranges if ranges is not None else None if self._incremental else source.extents()
        self._pieces = pieces(extents, source.capacity, self._piece)
        self._digests = DigestTable(source.capacity)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._errors: list[BaseException] = []

    def run(self) -> dict[str, Any]:
        """Sends everything and waits until the other side has it all; returns the counts and the root digest.

        Raises:
            VadplabError: the first failure of any worker, or of the other side.
        """
        threads = [
            threading.Thread(target=self._guard, name=f"source-worker-{n}", daemon=True) for n in range(self._workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            error = self._errors[0]
            if isinstance(error, VadplabError):
                self._link.fail(error)
            raise error
        if self._stop.is_set():
            raise Stopped("the task was stopped", step=self._source.step)
        self.counts.passed = self.counts.total
        return self._finish()

    def stop(self) -> None:
        """Ends the workers at their next batch."""
        self._stop.set()

    def _finish(self) -> dict[str, Any]:
        root = self._digests.root()
        self._link.stop_ticks()
        self._link.send("end", {"data": self.counts.clusters, "root": root, "size": self.counts.total})
        answer = self._link.receive()
        if answer.kind != "received" or answer.fields.get("clusters") != self.counts.clusters:
            raise DataProtocol("the other side did not confirm every cluster", **self._link.where)
        self.counts.sent = self._link.sent
        return {**self.counts.to_dict(), "root": root}

    def _guard(self) -> None:
        try:
            self._work()
        except BaseException as exc:
            self._errors.append(exc)
            self._stop.set()

    def _work(self) -> None:
        packer = Packer(level=self._level)
        buffers = [memoryview(bytearray(self._piece)) for _ in range(2)]
        current = self._start(buffers[0])
        turn = 0
        while current is not None and not self._stop.is_set():
            offset, view, read = current
            turn ^= 1
            following = self._start(buffers[turn])
            read.wait()
            self._take(packer, offset, view)
            current = following

    def _start(self, buffer: memoryview) -> tuple[int, memoryview, Read] | None:
        with self._lock:
            piece = next(self._pieces, None)
        if piece is None:
            return None
        offset, length = piece
        view = buffer[:length]
        return offset, view, self._source.start(offset, view)

    def _take(self, packer: Packer, offset: int, view: memoryview) -> None:
        first = offset >> CLUSTER_BITS
        same = len(view)
        for begin, part in [(first, view)] if self._comparison is None else self._comparison.differing(first, view):
            self._send(packer, begin, part)
            same -= len(part)
        with self._lock:
            self.counts.read += len(view)
            self.counts.passed = max(self.counts.passed, offset + len(view))
            self.counts.same += same

    def _send(self, packer: Packer, first: int, view: memoryview) -> None:
        batch = packer.pack(first, view)
        self._link.heed()
        sent = 0
        if batch.size or self._incremental:
            self._throttle.take(batch.size, self._stop)
            if self._stop.is_set():
                return
            fields = {"first": batch.first, "lengths": batch.lengths, "digests": batch.digests}
            sent = self._link.send("data", fields, batch.parts, batch.size)
        data = min(batch.data << CLUSTER_BITS, len(view))
        with self._lock:
            if batch.size:
                self._digests.put(batch.first, batch.digests)
            self.counts.data += data
            self.counts.zero += len(view) - data
            self.counts.clusters += batch.data
            self.counts.sent += sent


class Rate:
    """Bytes a second since the start, for progress."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def of(self, count: int) -> int:
        """The average rate for `count` bytes."""
        return round(count / max(time.monotonic() - self._start, 0.001))
