# SPDX-License-Identifier: MIT
"""A disk of a visible restore point: every cluster is checked against its digest before it leaves the repository.

`PointDisk` opens a disk; `batches` yields checked clusters in the order of the disk (still compressed, ready for the wire).
It is what restores read, what an incremental is compared with and stands on, and what merges copy.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from engine.errors import VadplabError
from engine.store import chain, health, locks
from engine.store.clusters import BATCH, CLUSTER, DIGEST, ZERO_DIGEST, Batch, Unpacker, matches
from engine.store.digests import DigestTable
from engine.store.errors import Damaged, FormatError, PointNotFound
from engine.store.manifest import DiskEntry, Manifest
from engine.store.qcow2.layout import TABLE_ENTRIES
from engine.store.qcow2.reader import Payload, Qcow2Reader
from engine.store.verify import THREADS, check_clusters

LOCK_WAIT = 5.0


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

        What is stored is checked as it is read against the digests of the files' blocks, and leaves as it is stored. What they
        do not vouch for (a file without them, damage beside the data) is expanded and compared with the clusters' digests.
        Whoever receives a batch expands it and checks it by its digests.

        Raises:
            Damaged: naming point, disk, offset, and how much of the disk is intact.
        """
        with contextlib.ExitStack() as stack:
            try:
                reader = stack.enter_context(chain.open_disk(self.chain, self.entry.key, sealed=True))
            except FormatError:
                reader = self.reader
            yield from (batch for batch in self._checked_ahead(reader) if batch.size)

    def _checked_ahead(self, reader: Qcow2Reader) -> Iterator[Batch]:
        """Every batch; threads check a few ahead of whoever takes them."""
        pending: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="batches") as pool:
            try:
                for first, count in self.areas(BATCH):
                    pending.append(pool.submit(self._batch, reader, first, count))
                    if len(pending) > 2 * THREADS:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for work in pending:
                    work.cancel()

    def areas(self, most: int) -> Iterator[tuple[int, int]]:
        """(first cluster, clusters) of neighbouring areas of at most `most` clusters, without those known to be empty."""
        per_table = TABLE_ENTRIES
        for begin in range(0, self.reader.clusters, per_table):
            end = min(begin + per_table, self.reader.clusters)
            if self.reader.holds(begin // per_table) or self.digests.holds(begin, end):
                for first in range(begin, end, most):
                    yield first, min(most, end - first)

    def _batch(self, reader: Qcow2Reader, first: int, count: int) -> Batch:
        unpacker = Unpacker()
        digests = self.digests.get(first, count)
        frames: list[bytes | memoryview] = []
        raw: list[bytes | memoryview] = []
        lengths: list[int] = []
        for position, payload in enumerate(self._payloads(reader, first, count, unpacker)):
            digest = digests[position * DIGEST : (position + 1) * DIGEST]
            if payload is None:
                right = digest == ZERO_DIGEST
            elif payload.sealed:
                right = digest != ZERO_DIGEST
            else:
                right = matches(_expanded(payload, unpacker), digest)
            if not right:
                raise self._damaged(first + position)
            if payload is not None:
                (frames if payload.compressed else raw).append(payload.data)
            lengths.append(0 if payload is None else len(payload.data))
        return Batch(first, lengths, digests, frames + raw, sum(lengths))

    def _payloads(self, reader: Qcow2Reader, first: int, count: int, unpacker: Unpacker) -> list[Payload | None]:
        for each in (reader, self.reader):
            with contextlib.suppress(FormatError):
                return each.payloads(first, count)
        for number in range(first, first + count):
            self.cluster(number, unpacker)  # raises for the damaged one
        raise self._damaged(first)

    def _damaged(self, cluster: int) -> Damaged:
        report = check_clusters(self.reader, self.digests)
        detail = report.describe() if report.damaged else "changed while it was read"
        where = f"{self.name}: refused at offset {cluster * CLUSTER}"
        return Damaged(f"{where}: {self._trouble(detail)}")

    def _trouble(self, detail: str) -> str:
        """`detail`, the damaged places in the files of this point's chain, and what else of this VM is intact."""
        try:
            report = health.of_vm(self.folder.parent)
        except VadplabError as exc:
            return f"{detail}; what else is intact could not be found out: {exc.message}"
        return f"{detail}; {report.summary(self.folder.name, self.manifest.vm.name)}"


def _expanded(payload: Payload, unpacker: Unpacker) -> bytes:
    try:
        return unpacker.expand(payload.data) if payload.compressed else bytes(payload.data)
    except FormatError:
        return b""  # has no cluster's digest
