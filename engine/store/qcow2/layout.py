# SPDX-License-Identifier: MIT
"""The qcow2 version 3 layout as this store uses it (QEMU `docs/interop/qcow2.txt`): header, L1, L2, refcounts.

Clusters of 64 KiB, compression type zstd, 16-bit refcounts, no internal snapshots, no encryption. Numbers are
big-endian. An *entry* is one 64-bit word of an L2 table.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from engine.store.clusters import CLUSTER, CLUSTER_BITS
from engine.store.errors import FormatError

MAGIC = 0x514649FB
VERSION = 3
HEADER = struct.Struct(">IIQIIQIIQQIIQQQQII")
HEADER_LENGTH = 112
INCOMPATIBLE_COMPRESSION = 1 << 3
COMPRESSION_ZSTD = 1
EXTENSION_BACKING_FORMAT = 0xE2792ACA

COPIED = 1 << 63
COMPRESSED = 1 << 62
READS_AS_ZEROS = 1
OFFSET_MASK = 0x00FFFFFFFFFFFE00
REFCOUNT_ORDER = 4
SECTOR = 512
TABLE_ENTRIES = CLUSTER // 8
"""Of an L2 table, which is one cluster."""
_LENGTH_SHIFT = 62 - (CLUSTER_BITS - 8)
"""Where the sectors of a compressed cluster stand in its entry, above its offset."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a reader needs of the header. Offsets and sizes are bytes; `l1_entries` and `refcount_clusters` are counts."""

    size: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    backing: str | None = None

    def encode(self) -> bytes:
        """The header's bytes, with the backing file's name and format where there is one."""
        extensions = b""
        name = (self.backing or "").encode()
        if name:
            extensions += struct.pack(">II", EXTENSION_BACKING_FORMAT, 5) + b"qcow2".ljust(8, b"\0")
        extensions += struct.pack(">II", 0, 0)
        fields = HEADER.pack(
            MAGIC,
            VERSION,
            HEADER_LENGTH + len(extensions) if name else 0,
            len(name),
            CLUSTER_BITS,
            self.size,
            0,  # encryption
            self.l1_entries,
            self.l1_offset,
            self.refcount_offset,
            self.refcount_clusters,
            0,  # internal snapshots
            0,
            INCOMPATIBLE_COMPRESSION,
            0,
            0,
            REFCOUNT_ORDER,
            HEADER_LENGTH,
        )
        return fields + bytes([COMPRESSION_ZSTD]) + bytes(7) + extensions + name

    @classmethod
    def decode(cls, data: bytes, what: str) -> Header:
        """Reads a header; `what` names the file in errors.

        Raises:
            FormatError: not such a file, or one with features that this store never writes.
        """
        if len(data) < HEADER_LENGTH:
            raise FormatError(f"{what}: too short for a qcow2 header")
        (
            magic, version, name_at, name_length, bits, size, encryption, l1_entries, l1_offset, refcount_offset,
            refcount_clusters, snapshots, _, incompatible, _, _, order, length,
        ) = HEADER.unpack_from(data)  # fmt: skip
        if magic != MAGIC or version != VERSION:
            raise FormatError(f"{what}: not a qcow2 version 3 file")
        if incompatible != INCOMPATIBLE_COMPRESSION or length < HEADER_LENGTH or data[104] != COMPRESSION_ZSTD:
            raise FormatError(f"{what}: not a cleanly closed qcow2 file with zstd compression")
        if encryption or snapshots or order != REFCOUNT_ORDER or bits != CLUSTER_BITS:
            raise FormatError(f"{what}: unexpected qcow2 features")
        if name_length and name_at + name_length > len(data):
            raise FormatError(f"{what}: the backing file's name lies outside the header")
        header = cls(
            size=size,
            l1_entries=l1_entries,
            l1_offset=l1_offset,
            refcount_offset=refcount_offset,
            refcount_clusters=refcount_clusters,
            backing=data[name_at : name_at + name_length].decode(errors="replace") if name_length else None,
        )
        if l1_offset % CLUSTER or refcount_offset % CLUSTER or not l1_offset or not refcount_offset:
            raise FormatError(f"{what}: a table is not aligned")
        if l1_entries < -(-size // (CLUSTER * TABLE_ENTRIES)):
            raise FormatError(f"{what}: the L1 table is too short for a disk of {size} bytes")
        return header


def compressed_entry(offset: int, length: int) -> int:
    """The entry of a compressed cluster: byte offset, and how many further 512-byte sectors it touches."""
    sectors = ((offset + length - 1) >> 9) - (offset >> 9)
    return COMPRESSED | sectors << _LENGTH_SHIFT | offset


def compressed_range(entry: int) -> tuple[int, int]:
    """(offset, length) of what an entry lets one read; the frame ends somewhere in its last sector."""
    offset = entry & ((1 << _LENGTH_SHIFT) - 1)
    sectors = ((entry & ~(COPIED | COMPRESSED)) >> _LENGTH_SHIFT) + 1
    return offset, sectors * SECTOR - offset % SECTOR
