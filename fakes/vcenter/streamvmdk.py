# SPDX-License-Identifier: MIT
"""A disk as a streamOptimized VMDK, the form in which vSphere sends disks (VMware "Virtual Disk Format 5.0").

Header, descriptor, then compressed grains in their order, a grain table behind each 512 of them, the grain directory, a
footer (the header that knows where the directory is), and an end marker. Grains of zeros are left out. Pure.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator

SECTOR = 512
GRAIN = 65536
_PER_TABLE = 512  # entries of a grain table
_OVERHEAD = 128  # sectors before the first grain
_AT_END = 0xFFFFFFFFFFFFFFFF
_FLAGS = 0x30001  # newlines can be checked, grains are compressed, there are markers
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
_MARKER = struct.Struct("<QII496x")
_GRAIN_MARKER = struct.Struct("<QI")
_TABLE, _DIRECTORY, _FOOTER = 1, 2, 3
_ZEROS = bytes(GRAIN)


def stream(
    capacity: int, extents: Iterable[tuple[int, int]], read: Callable[[int, int], bytes], name: str, content_id: str
) -> Generator[bytes, None, None]:
    """The bytes of the file `name`.

    Args:
        capacity: of the disk, in bytes, a multiple of 512. extents: `(start, length)` of what may hold data, in order.
        read: `(offset, length)` → data. content_id: eight hexadecimal digits.
    """
    text = _descriptor(capacity, name, content_id).encode()
    yield (_header(capacity, _AT_END) + text).ljust(_OVERHEAD * SECTOR, b"\0")
    at = _OVERHEAD  # the sector that comes next
    directory = [0] * -(-capacity // (GRAIN * _PER_TABLE))
    for table, grains in itertools.groupby(_grains(capacity, extents), lambda grain: grain // _PER_TABLE):
        entries = [0] * _PER_TABLE
        for grain in grains:
            offset = grain * GRAIN
            data = read(offset, min(GRAIN, capacity - offset)).ljust(GRAIN, b"\0")
            if data == _ZEROS:
                continue
            packed = zlib.compress(data, 1)
            part = _padded(_GRAIN_MARKER.pack(offset // SECTOR, len(packed)) + packed)
            entries[grain % _PER_TABLE] = at
            at += len(part) // SECTOR
            yield part
        if any(entries):
            part = _metadata(_TABLE, struct.pack(f"<{_PER_TABLE}I", *entries))
            directory[table] = at + 1
            at += len(part) // SECTOR
            yield part
    yield _metadata(_DIRECTORY, struct.pack(f"<{len(directory)}I", *directory))
    yield _metadata(_FOOTER, _header(capacity, at + 1)) + bytes(SECTOR)


def _grains(capacity: int, extents: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Numbers of the grains that the extents touch, each once."""
    following = 0
    for start, length in extents:
        end = -(-min(start + length, capacity) // GRAIN)
        yield from range(max(following, start // GRAIN), end)
        following = max(following, end)


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")


def _metadata(kind: int, data: bytes) -> bytes:
    data = _padded(data)
    return _MARKER.pack(len(data) // SECTOR, 0, kind) + data


def _header(capacity: int, directory: int) -> bytes:
    return _HEADER.pack(
        b"KDMV",
        3,
        _FLAGS,
        capacity // SECTOR,
        GRAIN // SECTOR,
        1,  # the descriptor's sector
        _OVERHEAD - 1,
        _PER_TABLE,
        0,
        directory,
        _OVERHEAD,
        0,
        b"\n \r\n",
        1,  # deflate
    )


def _descriptor(capacity: int, name: str, content_id: str) -> str:
    sectors = capacity // SECTOR
    return (
        f"# Disk DescriptorFile\nversion=1\nCID={content_id}\nparentCID=ffffffff\n"
        'createType="streamOptimized"\n\n'
        f'# Extent description\nRW {sectors} SPARSE "{name}"\n\n'
        '# The Disk Data Base\n#DDB\n\nddb.adapterType = "lsilogic"\n'
        f'ddb.geometry.cylinders = "{max(1, sectors // (255 * 63))}"\n'
        'ddb.geometry.heads = "255"\nddb.geometry.sectors = "63"\nddb.virtualHWVersion = "19"\n'
    )


class NotVmdk(ValueError):
    """The bytes are no streamOptimized VMDK for this disk, or end before it does."""


class Reader:
    """Takes a streamOptimized VMDK in parts of any size. `capacity`: of the disk that it must fit into, in bytes."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held = bytearray()
        self._skip = 0  # bytes that mean nothing here: descriptor, tables, padding
        self._begun = False
        self.ended = False

    def feed(self, part: bytes) -> Iterator[tuple[int, bytes]]:
        """`(offset, data)` of every grain that is complete by now. Raises NotVmdk."""
        self._held += part
        while not self.ended:
            dropped = min(self._skip, len(self._held))
            del self._held[:dropped]
            self._skip -= dropped
            if self._skip or len(self._held) < SECTOR:
                return
            if not self._begun:
                self._begin()
                continue
            sector, size = _GRAIN_MARKER.unpack_from(self._held)
            if not size:
                self._metadata(sector)
                continue
            whole = _GRAIN_MARKER.size + size
            if size > 2 * GRAIN:
                raise NotVmdk(f"a grain of {size} bytes")
            if len(self._held) < whole:
                return
            yield self._grain(sector * SECTOR, bytes(self._held[_GRAIN_MARKER.size : whole]))
            self._skip = -(-whole // SECTOR) * SECTOR

    def _begin(self) -> None:
        magic, version, flags, sectors, grain, *_, overhead, _, _, packing = _HEADER.unpack_from(self._held)
        if magic != b"KDMV" or version > 3 or flags & 0x30000 != 0x30000 or packing != 1:
            raise NotVmdk("not a streamOptimized VMDK")
        if grain * SECTOR != GRAIN or sectors * SECTOR > self._capacity or not 0 < overhead <= 1 << 20:
            raise NotVmdk(f"a disk of {sectors * SECTOR} bytes in grains of {grain * SECTOR} does not fit")
        self._skip = overhead * SECTOR
        self._begun = True

    def _metadata(self, sectors: int) -> None:
        _, _, kind = _MARKER.unpack_from(self._held)
        if kind == 0:
            self.ended = True
        elif kind > _FOOTER or sectors > 1 << 20:
            raise NotVmdk(f"a marker of kind {kind} over {sectors} sectors")
        self._skip = SECTOR + sectors * SECTOR

    def _grain(self, offset: int, packed: bytes) -> tuple[int, bytes]:
        engine = zlib.decompressobj()
        try:
            data = engine.decompress(packed, GRAIN)
        except zlib.error as exc:
            raise NotVmdk(f"the grain at {offset}: {exc}") from exc
        if offset >= self._capacity:
            raise NotVmdk(f"a grain at {offset}, beyond the disk's end")
        return offset, data[: self._capacity - offset]
