# SPDX-License-Identifier: MIT
"""Verifying a stored disk before its restore point becomes visible, and whenever someone asks.

What a clean result proves: header, L1, L2 and refcounts fit together and lie in the file; every cluster that the file
holds was read again from the file, its zstd frame (with checksum) expands, and its BLAKE3 digest is the one taken where
the source was read; every cluster that the file does not hold has the digest of zeros; no cluster is missing. It does
not prove that the source gave the right bytes, nor that the device will still return them tomorrow.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from engine.store.clusters import CLUSTER, DIGEST, Unpacker, matches
from engine.store.digests import DigestTable
from engine.store.errors import FormatError
from engine.store.qcow2 import layout
from engine.store.qcow2.reader import Qcow2Reader

THREADS = min(8, max(2, os.cpu_count() or 2))
_RANGE = 512
"""Clusters that a thread checks at a time: 32 MiB of disk."""
_NAMED = 16
"""Damaged clusters named in a report; the others are counted."""


@dataclass(slots=True)
class Report:
    """Result for one disk: clusters of the disk, clusters held by the file, damaged ones, and what is wrong with the tables."""

    clusters: int = 0
    held: int = 0
    damaged: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """Nothing is wrong."""
        return not self.damaged and not self.problems

    def describe(self) -> str:
        """What is wrong, with offsets in the disk, and how much is intact."""
        parts = list(self.problems[:4])
        if self.damaged:
            offsets = ", ".join(str(c * CLUSTER) for c in self.damaged[:_NAMED])
            more = f" and {len(self.damaged) - _NAMED} more" if len(self.damaged) > _NAMED else ""
            parts.append(
                f"damaged data at offset {offsets}{more}; {self.clusters - len(self.damaged)} of {self.clusters} blocks"
                f" of {CLUSTER >> 10} KiB are intact"
            )
        return "; ".join(parts) or "intact"


def verify_disk(path: Path, table: DigestTable, *, backing: Qcow2Reader | None = None) -> Report:
    """Walks the structure of the qcow2 file and checks every cluster against `table`; damage is reported, not raised."""
    try:
        reader = Qcow2Reader(path, backing=backing)
    except FormatError as exc:
        return Report(clusters=table.clusters, problems=[exc.message])
    with reader:
        report = check_clusters(reader, table)
        report.problems = walk(reader) + report.problems
        return report


def check_clusters(reader: Qcow2Reader, table: DigestTable) -> Report:
    """Checks the bytes of every cluster of the disk against its digest; the tables are taken as they are."""
    report = Report(clusters=reader.clusters)
    if reader.size != table.size:
        report.problems.append(f"the file holds a disk of {reader.size} bytes, the digests are for {table.size}")
        return report

    def one(first: int) -> tuple[int, list[int]]:
        unpacker = Unpacker()
        held, bad = 0, []
        digests = table.get(first, min(_RANGE, table.clusters - first))
        for at in range(0, len(digests), DIGEST):
            cluster, digest = first + at // DIGEST, digests[at : at + DIGEST]
            try:
                data = reader.read(cluster, unpacker)
            except FormatError:
                bad.append(cluster)
                continue
            held += data is not None
            if not matches(data, digest):
                bad.append(cluster)
        return held, bad

    with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as pool:
        for held, bad in pool.map(one, _ranges(reader, table)):
            report.held += held
            report.damaged.extend(bad)
    return report


def walk(reader: Qcow2Reader) -> list[str]:
    """What is wrong with the tables and refcounts of one file (not of the files below it); empty when nothing is."""
    header, problems = reader.header, []
    counts = array("H", bytes(2 * -(-reader.length // CLUSTER)))

    def use(offset: int, length: int, what: str) -> None:
        if length <= 0 or offset < CLUSTER or offset + length > reader.length:
            problems.append(f"{what} lies outside the file")
            return
        for host in range(offset // CLUSTER, (offset + length - 1) // CLUSTER + 1):
            counts[host] += 1

    counts[0] = 1
    l1_clusters = max(1, -(-header.l1_entries * 8 // CLUSTER))
    use(header.l1_offset, l1_clusters * CLUSTER, "the L1 table")
    use(header.refcount_offset, header.refcount_clusters * CLUSTER, "the refcount table")
    for index, word in enumerate(reader.l1):
        if word & layout.OFFSET_MASK:
            use(word & layout.OFFSET_MASK, CLUSTER, f"L2 table {index}")
            try:
                entries = reader.table(index)
            except FormatError as exc:
                problems.append(exc.message)
                continue
            for at, entry in enumerate(entries):
                if entry & ~layout.READS_AS_ZEROS:
                    offset, length = _extent(entry, reader)
                    use(offset, length, f"the data at disk offset {(index * len(entries) + at) * CLUSTER}")
    try:
        stored = _stored_refcounts(reader, counts, problems)
    except FormatError as exc:
        return [*problems, exc.message]
    if stored.tobytes() != counts.tobytes():
        problems.append("refcounts do not match what the tables use")
    return problems


def _extent(entry: int, reader: Qcow2Reader) -> tuple[int, int]:
    if entry & layout.COMPRESSED:
        offset, length = layout.compressed_range(entry)
        return offset, min(length, reader.length - offset)
    return entry & layout.OFFSET_MASK, CLUSTER


def _stored_refcounts(reader: Qcow2Reader, counts: array[int], problems: list[str]) -> array[int]:
    size = reader.header.refcount_clusters * CLUSTER
    pointers = struct.unpack(f">{size // 8}Q", reader.pread(reader.header.refcount_offset, size))
    blocks = [p for p in pointers if p]
    stored = array("H")
    for offset in blocks:
        if offset % CLUSTER:
            problems.append("a refcount block is not aligned")
            continue
        data = array("H", reader.pread(offset, CLUSTER))
        data.byteswap()
        stored.extend(data)
        counts[offset // CLUSTER] += 1
    if any(stored[len(counts) :]):
        problems.append("refcounts beyond the end of the file")
    return stored[: len(counts)]


def _ranges(reader: Qcow2Reader, table: DigestTable) -> Iterator[int]:
    per_table = layout.TABLE_ENTRIES
    for index in range(-(-reader.clusters // per_table)):
        begin, end = index * per_table, min((index + 1) * per_table, reader.clusters)
        if reader.holds(index) or table.holds(begin, end):
            yield from range(begin, end, _RANGE)
