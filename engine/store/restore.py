# SPDX-License-Identifier: MIT
"""Reading a disk of a restore point out: every cluster is checked against its digest before it leaves the repository.

`PointDisk` opens a disk, `batches` yields checked clusters in the order of the disk (still compressed, ready for the
wire), `to_file` writes a sparse file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from engine.errors import InputError, VadplabError
from engine.store import chain, durable, health, locks
from engine.store.clusters import BATCH, DIGEST, ZERO_DIGEST, Batch, Unpacker
from engine.store.digests import DigestTable
from engine.store.errors import Damaged, FormatError, PointNotFound
from engine.store.manifest import DiskEntry, Manifest
from engine.store.verify import THREADS, check_clusters, matches

LOCK_WAIT = 5.0
_AREA = 256
"""Clusters that a thread restores at a time: 16 MiB."""
_RUN = 16


@dataclass(frozen=True, slots=True)
class RestoreStats:
    """Bytes of the disk, bytes written (the rest is holes), blocks of 64 KiB checked, bytes received over the wire."""

    size: int
    written: int
    blocks: int
    received: int = 0


class TargetFile(InputError):
    """The file to restore to cannot be written."""

    code = "store.target"
    exit_code = 1
    symptom = "cannot be written"
    advice = "Name a file in a folder that exists, on a file system with enough space; nothing was left behind."


class PointDisk:
    """One disk of the visible restore point in `folder`, chosen by its vSphere key; whole, wherever in the chain its data lies.

    While it is open the chain is locked against merging and removal (other readers and new points are not disturbed).

    Args:
        wait: seconds to wait while the chain is being changed.

    Raises:
        PointNotFound: no such point or disk. ChainLocked: the chain is being changed.
        FormatError, Damaged: its files are not what the manifests say.
    """

    def __init__(self, folder: Path, key: int, *, wait: float = LOCK_WAIT) -> None:
        if not folder.is_dir():
            raise PointNotFound(f"restore point {folder.name}: not found")
        self.folder = folder
        self._lock = locks.chain(folder.parent, wait=wait)
        try:
            self._open(folder, key)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, folder: Path, key: int) -> None:
        self.manifest = Manifest.load(folder)
        entry = self.manifest.disk(key)
        if entry is None:
            known = ", ".join(str(disk.key) for disk in self.manifest.disks)
            raise PointNotFound(f"restore point {folder.name}: no disk {key} (it has {known})")
        self.entry: DiskEntry = entry
        self.name = f"restore point {folder.name}, {entry.file}"
        try:
            self.chain = chain.links(folder, self.manifest)
            self.digests = DigestTable.load(folder / entry.digests, entry.capacity)
            if self.digests.root() != entry.root:
                raise Damaged(f"{self.name}: the digest file {entry.digests} does not match the manifest")
            self.reader = chain.open_disk(self.chain, key)
        except (FormatError, Damaged) as exc:
            raise Damaged(f"{self.name}: {self._trouble(exc.message)}") from exc

    def __enter__(self) -> PointDisk:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.entry.capacity

    def close(self) -> None:
        """Closes the files and unlocks the chain."""
        self.reader.close()
        self._lock.close()

    def cluster(self, number: int, unpacker: Unpacker) -> bytes | None:
        """The bytes of one cluster, checked against its digest; None for zeros. Raises Damaged as `batches`."""
        try:
            data = self.reader.read(number, unpacker)
        except FormatError as exc:
            raise self._damaged(number) from exc
        if not matches(data, self.digests.get(number)):
            raise self._damaged(number)
        return data

    def batches(self) -> Iterator[Batch]:
        """Checked batches that hold something, in the order of the disk.

        Raises:
            Damaged: naming point, disk, offset, and how much of the disk is intact.
        """
        unpacker = Unpacker(cluster_bits=self.reader.header.cluster_bits)
        for first, count in self.areas(BATCH):
            batch = self._batch(first, count, unpacker)
            if batch.size:
                yield batch

    def areas(self, most: int) -> Iterator[tuple[int, int]]:
        """(first cluster, clusters) of neighbouring areas of at most `most` clusters, without those known to be empty."""
        per_table = self.reader.header.table_entries
        for begin in range(0, self.reader.clusters, per_table):
            end = min(begin + per_table, self.reader.clusters)
            if self.reader.holds(begin // per_table) or self.digests.holds(begin, end):
                for first in range(begin, end, most):
                    yield first, min(most, end - first)

    def _batch(self, first: int, count: int, unpacker: Unpacker) -> Batch:
        digests = self.digests.get(first, count)
        lengths: list[int] = []
        frames: list[bytes | memoryview] = []
        raw: list[bytes | memoryview] = []
        for position in range(count):
            digest = digests[position * DIGEST : (position + 1) * DIGEST]
            try:
                found = self.reader.payload(first + position)
                data = None if found is None else unpacker.expand(found[0]) if found[1] else found[0]
            except FormatError as exc:
                raise self._damaged(first + position) from exc
            if not matches(data, digest):
                raise self._damaged(first + position)
            if found is None or data is None:
                lengths.append(0)
            elif found[1] and len(found[0]) < self.reader.cluster:
                frames.append(found[0])
                lengths.append(len(found[0]))
            else:
                raw.append(data)
                lengths.append(self.reader.cluster)
        return Batch(first, lengths, digests, frames + raw, sum(lengths))

    def _damaged(self, cluster: int) -> Damaged:
        report = check_clusters(self.reader, self.digests)
        detail = report.describe() if report.damaged else "changed while it was read"
        where = f"{self.name}: refused at offset {cluster * self.reader.cluster}"
        return Damaged(f"{where}: {self._trouble(detail)}")

    def _trouble(self, detail: str) -> str:
        """`detail`, the damaged places in the files of this point's chain, and what else of this VM is intact."""
        try:
            report = health.of_vm(self.folder.parent)
        except VadplabError as exc:
            return f"{detail}; what else is intact could not be found out: {exc.message}"
        return f"{detail}; {report.summary(self.folder.name, self.manifest.vm.name)}"


class SparseFile:
    """A new file of `size` bytes that appears under its name only when it is complete: holes where the disk has zeros."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.written = 0
        self.blocks = 0
        self._counting = threading.Lock()
        self._part = path.with_name(f"{path.name}.part")
        try:
            self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._fd, size)
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
        for position, data in unpacker.unpack(lengths, payload):
            offset = (first + position) * unpacker.cluster
            if entries[position] == ZERO_DIGEST or not matches(bytes(data), entries[position]):
                raise Damaged(f"{self.path.name}: received data at offset {offset} does not match its digest")
            try:
                durable.write_at(self._fd, memoryview(data)[: self.size - offset], offset)
            except OSError as exc:
                raise _refused(exc, self._part) from exc
            self.written += min(len(data), self.size - offset)
            self.blocks += 1

    def write(self, first: int, clusters: list[bytes]) -> None:
        """Writes neighbouring clusters that were checked already; for several threads, each its own clusters."""
        offset = first * len(clusters[0])
        data = memoryview(b"".join(clusters))[: self.size - offset]
        try:
            durable.write_at(self._fd, data, offset)
        except OSError as exc:
            raise _refused(exc, self._part) from exc
        with self._counting:
            self.written += len(data)
            self.blocks += len(clusters)

    def finish(self) -> None:
        """Syncs the file and gives it its name."""
        try:
            durable.sync(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._part.replace(self.path)
        except OSError as exc:
            raise _refused(exc, self.path) from exc

    def discard(self) -> None:
        """Removes the unfinished file; harmless after `finish`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._part.unlink(missing_ok=True)


def _refused(exc: OSError, path: Path) -> TargetFile:
    return TargetFile(f"{path}: {exc.strerror or exc}")


def to_file(disk: PointDisk, path: Path, *, threads: int = THREADS) -> RestoreStats:
    """Restores `disk` to the sparse file `path`, which appears only when every block was checked and written."""
    target = SparseFile(path, disk.size)
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="restore") as pool:
            todo = [pool.submit(_restore, disk, target, first, count) for first, count in disk.areas(_AREA)]
            try:
                for work in todo:
                    work.result()
            except BaseException:
                for work in todo:
                    work.cancel()
                raise
        target.finish()
    finally:
        target.discard()
    return RestoreStats(disk.size, target.written, target.blocks)


def _restore(disk: PointDisk, target: SparseFile, first: int, count: int) -> None:
    """Checks and writes one area; neighbouring clusters are written together."""
    unpacker = Unpacker(cluster_bits=disk.reader.header.cluster_bits)
    run: list[bytes] = []
    for number in range(first, first + count):
        data = disk.cluster(number, unpacker)
        if data is not None:
            run.append(data)
        if run and (data is None or len(run) == _RUN):
            target.write(number + (data is not None) - len(run), run)
            run = []
    if run:
        target.write(first + count - len(run), run)
