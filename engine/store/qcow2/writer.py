# SPDX-License-Identifier: MIT
"""Writing a disk as a stream into a qcow2 file.

Batches of clusters are appended as they arrive; L2 tables, the L1 table and refcounts follow the data; the header is
written last, so a file that was cut at any instant has no header and is no qcow2 file at all.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from engine.errors import InputError
from engine.store.clusters import CLUSTER, CLUSTER_BITS
from engine.store.errors import FormatError
from engine.store.qcow2 import layout
from engine.store.segments import SEGMENT, SegmentWriter


class Qcow2Writer:
    """Writes one new file. Not thread-safe.

    Args:
        path: must not exist. size: the disk's size in bytes, a multiple of 512.
        backing: name of the file below it in the chain (clusters that are never added are read from there).
    """

    def __init__(
        self,
        path: Path,
        size: int,
        *,
        backing: str | None = None,
        segment: int = SEGMENT,
    ) -> None:
        if size < 0 or size % layout.SECTOR:
            raise InputError(f"{path.name}: a disk's size must be a multiple of 512 bytes, not {size}")
        self.path = path
        self.size = size
        self.backing = backing
        self.clusters = -(-size >> CLUSTER_BITS)
        self._tables: dict[int, array[int]] = {}
        self._refcounts: array[int] = array("H", [1])
        self._out = SegmentWriter(path, start=CLUSTER, segment=segment)

    def __enter__(self) -> Qcow2Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def stored(self) -> int:
        """Bytes of the file so far."""
        return self._out.position

    @property
    def tables(self) -> dict[int, array[int]]:
        """The L2 tables by number."""
        return self._tables

    @property
    def direct(self) -> bool:
        """Whether the file is written past the page cache."""
        return self._out.direct

    def wait_written(self, offset: int) -> int:
        """Returns when everything before `offset` of the file was handed to the device: how many bytes were; from any thread."""
        return self._out.wait_written(offset)

    def holds(self, cluster: int) -> bool:
        """Whether the file names that cluster already."""
        table = self._tables.get(cluster // layout.TABLE_ENTRIES)
        return bool(table and table[cluster % layout.TABLE_ENTRIES])

    def add(self, first: int, lengths: Sequence[int], payload: memoryview) -> list[int]:
        """Appends a batch (see `engine.store.clusters`): zstd frames first, raw clusters after them.

        A length of 0 leaves the cluster unallocated, or marks it as zeros when there is a backing file.

        Returns:
            Where each cluster lies in the file; 0 for zeros.

        Raises:
            FormatError: the batch does not fit the disk, or a cluster was added before. StoreError: the disk refused.
        """
        if not 0 <= first <= first + len(lengths) <= self.clusters or sum(lengths) != len(payload):
            raise FormatError(f"{self.path.name}: a batch at cluster {first} does not fit the disk")
        at = self._out.position
        places = [0] * len(lengths)
        frames = 0
        for position, length in enumerate(lengths):
            if 0 < length < CLUSTER:
                self._map(first + position, layout.compressed_entry(at, length))
                places[position] = at
                self._count((at >> 9 << 9) >> CLUSTER_BITS, ((at + length - 1) >> CLUSTER_BITS) + 1)
                at += length
                frames += length
            elif length == 0 and self.backing:
                self._map(first + position, layout.READS_AS_ZEROS)
        self._out.append(payload[:frames])
        if frames < len(payload):
            self._out.pad(CLUSTER)
            at = self._out.position
            for position, length in enumerate(lengths):
                if length == CLUSTER:
                    self._map(first + position, layout.COPIED | at)
                    places[position] = at
                    self._count(at >> CLUSTER_BITS, (at >> CLUSTER_BITS) + 1)
                    at += CLUSTER
            self._out.append(payload[frames:])
        return places

    def finish(self) -> int:
        """Writes the tables, then the header, and syncs; returns the file's length in bytes."""
        self._out.pad(CLUSTER)
        tables = max(1, -(-self.clusters // layout.TABLE_ENTRIES))
        l1 = array("Q", bytes(8 * tables))
        for index in sorted(self._tables):
            table = self._tables[index]
            l1[index] = layout.COPIED | self._allocate(1)
            self._out.append(_big_endian(table))
        l1_bytes = _big_endian(l1)
        l1_clusters = -(-len(l1_bytes) // CLUSTER)
        l1_offset = self._allocate(l1_clusters)
        self._out.append(l1_bytes.ljust(l1_clusters * CLUSTER, b"\0"))
        refcount_offset, refcount_clusters = self._write_refcounts()
        length = self._out.finish()
        header = layout.Header(
            size=self.size,
            l1_entries=tables,
            l1_offset=l1_offset,
            refcount_offset=refcount_offset,
            refcount_clusters=refcount_clusters,
            backing=self.backing,
        )
        self._out.header(header.encode())
        self._out.close()
        return length

    def close(self) -> None:
        """Ends the writer; without `finish` the file stays without a header."""
        self._out.close()

    def _map(self, cluster: int, entry: int) -> None:
        index, at = divmod(cluster, layout.TABLE_ENTRIES)
        table = self._tables.get(index)
        if table is None:
            table = self._tables[index] = array("Q", bytes(8 * layout.TABLE_ENTRIES))
        if table[at]:
            raise FormatError(f"{self.path.name}: cluster {cluster} was sent twice")
        table[at] = entry

    def _count(self, begin: int, end: int) -> None:
        missing = end - len(self._refcounts)
        if missing > 0:
            self._refcounts.extend(array("H", bytes(2 * (missing + 1024))))
        for cluster in range(begin, end):
            self._refcounts[cluster] += 1

    def _allocate(self, clusters: int) -> int:
        offset = self._out.position
        self._count(offset >> CLUSTER_BITS, (offset >> CLUSTER_BITS) + clusters)
        return offset

    def _write_refcounts(self) -> tuple[int, int]:
        per_block = CLUSTER // 2
        used = self._out.position >> CLUSTER_BITS
        blocks = table = 1
        while True:  # the refcounts' own clusters are counted too
            need = -(-(used + blocks + table) // per_block)
            need_table = -(-need * 8 // CLUSTER)
            if need <= blocks and need_table <= table:
                break
            blocks, table = max(need, blocks), max(need_table, table)
        first = self._allocate(blocks + table)
        counts = self._refcounts[: used + blocks + table]
        counts.extend(array("H", bytes(2 * (blocks * per_block - len(counts)))))
        self._out.append(_big_endian(counts))
        pointers = struct.pack(f">{blocks}Q", *(first + i * CLUSTER for i in range(blocks)))
        self._out.append(pointers.ljust(table * CLUSTER, b"\0"))
        return first + blocks * CLUSTER, table


def _big_endian(values: array[int]) -> bytes:
    swapped = values[:]
    swapped.byteswap()
    return swapped.tobytes()
