# SPDX-License-Identifier: MIT
"""The proxy's half of a backup: read, drop zeros, cut, hash, compress, send (steps 20c and 21).

Two or three workers, each with two buffers of 1 MiB (while one is packed and sent, the next is being read), its own
compressor, and the shared data link (disks reference section 7).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import VadplabError
from engine.modes.source import Extent, Read, Source
from engine.mover.datalink import DataLink
from engine.mover.errors import DataProtocol, Stopped
from engine.mover.throttle import Throttle
from engine.store.clusters import BATCH, CLUSTER_BITS, Packer
from engine.store.digests import DigestTable


@dataclass(slots=True)
class Counts:
    """Bytes of the disk: `passed` (read, or known to be unallocated), `read`, `zero`, `data`; `sent`: bytes on the wire."""

    total: int
    passed: int = 0
    read: int = 0
    zero: int = 0
    data: int = 0
    sent: int = 0
    blocks: int = 0

    def to_dict(self) -> dict[str, int]:
        """As a message."""
        return asdict(self)


def pieces(extents: Iterable[Extent] | None, capacity: int, piece: int, cluster: int) -> Iterator[Extent]:
    """Cuts the allocated areas into reads of at most `piece` bytes on cluster boundaries; no cluster comes twice."""
    done = 0
    for offset, length in [(0, capacity)] if extents is None else extents:
        begin = max(offset // cluster * cluster, done)
        end = min(-(-(offset + length) // cluster) * cluster, capacity)
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
        cluster_bits: int = CLUSTER_BITS,
    ) -> None:
        self.counts = Counts(source.capacity)
        self._source = source
        self._link = link
        self._throttle = throttle
        self._workers = workers
        self._level = level
        self._cluster_bits = cluster_bits
        self._piece = BATCH << cluster_bits
        self._pieces = pieces(source.extents(), source.capacity, self._piece, 1 << cluster_bits)
        self._digests = DigestTable(source.capacity, cluster_bits=cluster_bits)
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
            raise Stopped("the task was stopped", step="20c")
        self.counts.passed = self.counts.total
        return self._finish()

    def stop(self) -> None:
        """Ends the workers at their next block."""
        self._stop.set()

    def _finish(self) -> dict[str, Any]:
        root = self._digests.root()
        self._link.stop_ticks()
        self._link.send("end", {"data": self.counts.blocks, "root": root, "size": self.counts.total})
        answer = self._link.receive()
        if answer.kind != "received" or answer.fields.get("blocks") != self.counts.blocks:
            raise DataProtocol("the other side did not confirm every block", **self._link.where)
        self.counts.sent = self._link.sent
        return {**self.counts.to_dict(), "root": root}

    def _guard(self) -> None:
        try:
            self._work()
        except BaseException as exc:
            self._errors.append(exc)
            self._stop.set()

    def _work(self) -> None:
        packer = Packer(cluster_bits=self._cluster_bits, level=self._level)
        buffers = [memoryview(bytearray(self._piece)) for _ in range(2)]
        current = self._start(buffers[0])
        turn = 0
        while current is not None and not self._stop.is_set():
            offset, view, read = current
            turn ^= 1
            following = self._start(buffers[turn])
            read.wait()
            self._send(packer, offset, view)
            current = following

    def _start(self, buffer: memoryview) -> tuple[int, memoryview, Read] | None:
        with self._lock:
            piece = next(self._pieces, None)
        if piece is None:
            return None
        offset, length = piece
        view = buffer[:length]
        return offset, view, self._source.start(offset, view)

    def _send(self, packer: Packer, offset: int, view: memoryview) -> None:
        batch = packer.pack(offset >> self._cluster_bits, view)
        self._link.heed()
        sent = 0
        if batch.size:
            self._throttle.take(batch.size, self._stop)
            if self._stop.is_set():
                return
            fields = {"first": batch.first, "lengths": batch.lengths, "digests": batch.digests}
            sent = self._link.send("data", fields, batch.parts, batch.size)
        data = min(batch.data << self._cluster_bits, len(view))
        with self._lock:
            if batch.size:
                self._digests.put(batch.first, batch.digests)
            self.counts.read += len(view)
            self.counts.passed = max(self.counts.passed, offset + len(view))
            self.counts.data += data
            self.counts.zero += len(view) - data
            self.counts.blocks += batch.data
            self.counts.sent += sent


class Rate:
    """Bytes a second since the start, for progress."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def of(self, count: int) -> int:
        """The average rate for `count` bytes."""
        return round(count / max(time.monotonic() - self._start, 0.001))
