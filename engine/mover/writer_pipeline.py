# SPDX-License-Identifier: MIT
"""Receiving a disk of a restore point and writing it into a new VM's disk.

One thread receives; workers check every cluster against its digest and write runs of neighbouring ones, so that several
writes are in flight. The disk must be new: clusters that are zeros are not written.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import Any

from engine.errors import ConnectError, RemoteError, VadplabError
from engine.modes.writer import DiskWriter
from engine.mover.batches import batch_of
from engine.mover.datalink import DataLink
from engine.mover.errors import DataProtocol, Stopped
from engine.store.clusters import BATCH, CLUSTER_BITS, DIGEST, Unpacker, matches
from engine.store.errors import Damaged, FormatError

DRAIN = 3.0
_Batch = tuple[int, list[int], bytes, bytes]


class WriterPipeline:
    """Writes one disk. `run` blocks; `written` and `passed` (bytes of the disk) may be read meanwhile; `stop` ends it."""

    def __init__(self, disk: DiskWriter, link: DataLink, *, step: str, workers: int = 2) -> None:
        self.written = 0
        self.passed = 0
        self.clusters = 0
        self._disk = disk
        self._link = link
        self._step = step
        self._workers = workers
        self._queue: queue.Queue[_Batch | None] = queue.Queue(2 * workers)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._errors: list[BaseException] = []

    def run(self) -> dict[str, Any]:
        """Writes everything, syncs, and tells the sender; gives `written` (bytes), `clusters`, `received` (bytes on the wire).

        Raises:
            VadplabError: the first failure of a worker, of the link, or of the sender.
        """
        threads = [threading.Thread(target=self._guard, name=f"write-{n}", daemon=True) for n in range(self._workers)]
        for thread in threads:
            thread.start()
        try:
            self._receive()
        except BaseException as exc:
            self._errors.append(exc)
            self._stop.set()
        for _ in threads:
            self._put(None)
        for thread in threads:
            thread.join()
        try:
            if self._errors:
                raise self._errors[0]
            return self._finish()
        except VadplabError as exc:
            exc.step = exc.step or self._step
            if not isinstance(exc, RemoteError) and not (
                isinstance(exc, ConnectError) and exc.code.startswith("data.")
            ):
                self._link.fail(exc)
                self._link.drain(DRAIN)
            raise
        finally:
            self._link.close()

    def stop(self) -> None:
        """Ends it at the next batch; the link is closed, so that nothing waits for it."""
        self._stop.set()
        self._link.close()

    def _receive(self) -> None:
        clusters = -(-self._disk.capacity >> CLUSTER_BITS)
        sent = 0
        while not self._stop.is_set():
            frame = self._link.receive()
            if frame.kind == "end":
                if frame.fields.get("size") != self._disk.capacity:
                    raise DataProtocol("the sender's disk has another size", **self._link.where)
                if frame.fields.get("data") != sent:
                    raise DataProtocol(f"{sent} clusters received, the sender sent another number", **self._link.where)
                return
            first, lengths, digests = batch_of(frame, clusters, self._link)
            sent += sum(1 for length in lengths if length)
            self._put((first, lengths, digests, bytes(frame.payload)))
        if not self._errors:
            raise Stopped("the restore was stopped", step=self._step)

    def _put(self, batch: _Batch | None) -> None:
        while batch is None or not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(batch, timeout=0.2)
                return

    def _finish(self) -> dict[str, Any]:
        self._link.start_ticks()  # a sync may take longer than the sender's patience
        try:
            self._disk.flush()
        finally:
            self._link.stop_ticks()
        self._link.send("received", {"clusters": self.clusters})
        return {"written": self.written, "clusters": self.clusters, "received": self._link.received}

    def _guard(self) -> None:
        unpacker = Unpacker()
        room = memoryview(bytearray(BATCH << CLUSTER_BITS))
        while (batch := self._queue.get()) is not None:
            if self._stop.is_set():
                continue  # what waits is dropped, so that the receiving thread never blocks
            try:
                self._write(batch, unpacker, room)
            except BaseException as exc:
                self._errors.append(exc)
                self._stop.set()

    def _write(self, batch: _Batch, unpacker: Unpacker, room: memoryview) -> None:
        first, lengths, digests, payload = batch
        begin, filled, clusters = 0, 0, 0
        try:
            for position, data in unpacker.unpack(lengths, memoryview(payload)):
                offset = (first + position) << CLUSTER_BITS
                if not matches(data, digests[position * DIGEST : (position + 1) * DIGEST]):
                    raise Damaged(f"received data at offset {offset} does not match its digest", step=self._step)
                if filled and (offset != begin + filled or filled == len(room)):
                    self._disk.write(begin, room[:filled])
                    filled = 0
                if not filled:
                    begin = offset
                count = min(len(data), self._disk.capacity - offset)
                room[filled : filled + count] = memoryview(data)[:count]
                filled += count
                clusters += 1
        except FormatError as exc:
            raise Damaged(f"received data in clusters from {first} on: {exc.message}", step=self._step) from exc
        if filled:
            self._disk.write(begin, room[:filled])
        with self._lock:
            self.clusters += clusters
            self.written += clusters << CLUSTER_BITS
            self.passed = max(self.passed, min((first + len(lengths)) << CLUSTER_BITS, self._disk.capacity))
