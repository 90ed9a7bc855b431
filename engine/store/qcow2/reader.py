# SPDX-License-Identifier: MIT
"""Reading a qcow2 file of this store, alone or as the top of a chain.

Safe for several threads: reads use offsets, and what is cached is only ever replaced whole.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from engine.store.blocks import BLOCK, Seal
from engine.store.clusters import CLUSTER, Unpacker
from engine.store.errors import FormatError
from engine.store.qcow2 import layout

_CACHED_TABLES = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cluster's bytes lie: `offset` and `length` in the file; `compressed`: one zstd frame, up to 511 bytes after it."""

    offset: int
    length: int
    compressed: bool


@dataclass(frozen=True, slots=True)
class Payload:
    """The stored bytes of a cluster. compressed: one zstd frame, up to 511 bytes after it. sealed: they were checked."""

    data: memoryview
    compressed: bool
    sealed: bool


class Qcow2Reader:
    """One file, with `backing` below it (clusters that this file does not hold are asked from there).

    Args:
        alone: read this file by itself although it names one below it; what that one holds then reads as zeros.
        seal: every byte that is read of this file, tables included, is checked against it.
    """

    def __init__(
        self, path: Path, *, backing: Qcow2Reader | None = None, alone: bool = False, seal: Seal | None = None
    ) -> None:
        self.path = path
        self.backing = backing
        self.seal = seal
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise FormatError(f"{path.name}: {exc.strerror or exc}") from exc
        try:
            self.length = os.fstat(self._fd).st_size
            self.header = layout.Header.decode(self.pread(0, min(4096, self.length)), path.name)
            if self.header.backing and backing is None and not alone:
                raise FormatError(f"{path.name}: needs {self.header.backing} below it")
            count = self.header.l1_entries
            self.l1 = struct.unpack(f">{count}Q", self.pread(self.header.l1_offset, 8 * count))
        except BaseException:
            os.close(self._fd)
            raise
        self.size = self.header.size
        self.clusters = -(-self.size // CLUSTER)
        self._tables: dict[int, tuple[int, ...]] = {}

    def __enter__(self) -> Qcow2Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes this file and those below it."""
        self.close_own()
        if self.backing:
            self.backing.close()

    def close_own(self) -> None:
        """Closes this file only."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of the file.

        Raises:
            FormatError: the range lies outside the file, the disk could not read it, or it is not as the seal says.
        """
        if offset + length > self.length:
            raise FormatError(f"{self.path.name}: bytes {offset}..{offset + length} lie outside the file")
        if self.seal is None:
            return self._pread(offset, length)
        begin = offset // BLOCK * BLOCK
        data = self._pread(begin, min(-(-(offset + length) // BLOCK) * BLOCK, self.length) - begin)
        try:
            self.seal.check(begin, data)
        except FormatError as exc:
            raise FormatError(f"{self.path.name}: {exc.message}") from exc
        return data[offset - begin : offset - begin + length]

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as exc:
            raise FormatError(f"{self.path.name}: offset {offset}: {exc.strerror or exc}") from exc
        if len(data) != length:
            raise FormatError(f"{self.path.name}: short read at offset {offset}")
        return data

    def table(self, index: int) -> tuple[int, ...]:
        """Entries of L2 table `index`; empty when there is none."""
        cached = self._tables.get(index)
        if cached is not None:
            return cached
        offset = self.l1[index] & layout.OFFSET_MASK
        entries: tuple[int, ...] = ()
        if offset:
            if offset % CLUSTER:
                raise FormatError(f"{self.path.name}: L2 table {index} is not aligned")
            entries = struct.unpack(f">{layout.TABLE_ENTRIES}Q", self.pread(offset, CLUSTER))
        tables = self._tables if len(self._tables) < _CACHED_TABLES else {}
        tables[index] = entries
        self._tables = tables
        return entries

    def entry(self, cluster: int) -> int:
        """The L2 entry of a cluster; 0 when it is unallocated."""
        table = self.table(cluster // layout.TABLE_ENTRIES)
        return table[cluster % layout.TABLE_ENTRIES] if table else 0

    def find_own(self, cluster: int) -> Place | None:
        """Where this very file holds a cluster's bytes; None when it holds none."""
        entry = self.entry(cluster)
        if entry & layout.COMPRESSED:
            offset, length = layout.compressed_range(entry)
            return Place(offset, min(length, self.length - offset), True)
        if entry & layout.READS_AS_ZEROS or not entry & layout.OFFSET_MASK:
            return None
        return Place(entry & layout.OFFSET_MASK, CLUSTER, False)

    def find(self, cluster: int) -> tuple[Qcow2Reader, Place] | None:
        """The file of the chain that holds a cluster, and where; None when it reads as zeros."""
        if stored := self.find_own(cluster):
            return self, stored
        if self.entry(cluster) & layout.READS_AS_ZEROS:
            return None
        if self.backing and cluster < self.backing.clusters:
            return self.backing.find(cluster)
        return None

    def read(self, cluster: int, unpacker: Unpacker) -> bytes | None:
        """The cluster's bytes; None for zeros. Raises FormatError when it cannot be expanded."""
        found = self.find(cluster)
        if found is None:
            return None
        owner, stored = found
        data = owner.pread(stored.offset, stored.length)
        return unpacker.expand(data) if stored.compressed else data

    def payloads(self, first: int, count: int) -> list[Payload | None]:
        """What is stored for each of `count` clusters, None for zeros; what lies close together is read at once.

        Raises:
            FormatError: a table or a stored range is not right, or not as a seal says.
        """
        payloads: list[Payload | None] = [None] * count
        wanted = [(*found, at) for at in range(count) if (found := self.find(first + at))]
        wanted.sort(key=lambda one: (id(one[0]), one[1].offset))
        while wanted:
            owner, stored, _ = wanted[0]
            begin, end, together = stored.offset, stored.offset + stored.length, 1
            while together < len(wanted) and wanted[together][0] is owner and wanted[together][1].offset <= end + BLOCK:
                end = max(end, wanted[together][1].offset + wanted[together][1].length)
                together += 1
            view = memoryview(owner.pread(begin, end - begin))
            for _, stored, at in wanted[:together]:
                if stored.compressed and stored.length >= CLUSTER:
                    raise FormatError(f"{owner.path.name}: a compressed cluster of {stored.length} bytes")
                data = view[stored.offset - begin : stored.offset - begin + stored.length]
                payloads[at] = Payload(data, stored.compressed, owner.seal is not None)
            del wanted[:together]
        return payloads

    def named_clusters(self) -> int:
        """How many clusters this very file names: data and zeros that hide what lies below."""
        tables = (self.table(index) for index, word in enumerate(self.l1) if word & layout.OFFSET_MASK)
        return sum(1 for table in tables for entry in table if entry & ~layout.COPIED)

    def holds(self, index: int) -> bool:
        """Whether L2 table `index` exists somewhere in the chain."""
        if index < len(self.l1) and self.l1[index] & layout.OFFSET_MASK:
            return True
        return bool(self.backing and self.backing.holds(index))
