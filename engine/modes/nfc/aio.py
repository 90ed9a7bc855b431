# SPDX-License-Identifier: MIT
"""AIO frames of NFC (nfc reference section 4): pure functions, little-endian.

A frame is 16 bytes `magic, type, size, opId`, then `size` bytes of payload, then extras (path, data) that `size` does not
count. A read is answered by one or more IO frames with the request's opId, each with a fragment of at most 64 KiB, in any
order.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from engine.modes.nfc.errors import NfcProtocol

MAGIC = 0xA100DA7A
HEADER = struct.Struct("<IIII")
IO_REQUEST = struct.Struct("<QIIQQIII")
IO_REPLY = struct.Struct("<QIIQIIIII")
OPEN_REPLY = struct.Struct("<8xQIIII4xI20x")
MAX_PAYLOAD = 4096
MAX_FRAGMENT = 1 << 20
SLACK = 4096
"""Bytes that a packed fragment may be longer than its data."""
READ_ONLY = 0x1E
READ_WRITE = 0x1A


class Type(IntEnum):
    """Types of frames that this client uses."""

    ERROR = 1
    OPEN_SESSION = 2
    CLOSE_SESSION = 3
    OPEN_FILE = 4
    CLOSE_FILE = 5
    IO = 7


class FileType(IntEnum):
    """What the open-file message calls the file: 2 is documented, 1 for plain text is an assumption (nfc reference 4)."""

    TEXT = 1
    DISK = 2


class Packing(IntEnum):
    """Compression of a fragment's data.

    FastLZ (2) and skipz (3) are not here: no maintained codec of FastLZ can be had for Python, and what skipz does is not known.
    """

    NONE = 0
    ZLIB = 1


@dataclass(frozen=True, slots=True)
class OpenFile:
    """Reply to an open: `handle`, and `capacity` at offset 28: sectors or bytes of a disk, bytes of a plain file."""

    handle: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of the reply to a read: `offset` of the request, `at` within the request, `length` in bytes, `packed` on the wire."""

    offset: int
    request: int
    at: int
    length: int
    packing: Packing = Packing.NONE
    packed: int = 0


def frame(kind: int, op: int, payload: bytes = b"", extra: bytes = b"") -> bytes:
    """One frame."""
    return HEADER.pack(MAGIC, kind, len(payload), op) + payload + extra


def parse_header(data: bytes | bytearray | memoryview) -> tuple[int, int, int]:
    """(type, size, opId). Raises NfcProtocol for a wrong magic or an impossible size."""
    magic, kind, size, op = HEADER.unpack(data)
    if magic != MAGIC:
        raise NfcProtocol(f"not an NFC frame (magic {magic:#010x})")
    if size > MAX_PAYLOAD:
        raise NfcProtocol(f"an NFC frame with {size} bytes of payload")
    return kind, size, op


def open_session(op: int) -> bytes:
    """Opens the AIO session."""
    return frame(Type.OPEN_SESSION, op, bytes(16))


def close_session(op: int) -> bytes:
    """Closes the AIO session."""
    return frame(Type.CLOSE_SESSION, op, bytes(4))


def open_file(op: int, path: str, kind: FileType, *, write: bool = False) -> bytes:
    """Opens `path` (`[datastore1] vm/vm.vmdk`) for reading, or for reading and writing."""
    name = path.encode()
    flags = READ_WRITE if write else READ_ONLY
    return frame(Type.OPEN_FILE, op, struct.pack("<I12xII36x", len(name), kind, flags), name)


def parse_opened(payload: bytes | bytearray | memoryview) -> OpenFile:
    """Reply to `open_file`. Raises NfcProtocol."""
    if len(payload) != OPEN_REPLY.size:
        raise NfcProtocol(f"an open reply of {len(payload)} bytes")
    handle, _, _, _, capacity, sector = OPEN_REPLY.unpack(payload)
    if sector not in (0, 512):
        raise NfcProtocol(f"a file with sectors of {sector} bytes")
    return OpenFile(handle, capacity)


def close_file(op: int, handle: int) -> bytes:
    """Closes a file."""
    return frame(Type.CLOSE_FILE, op, struct.pack("<Q", handle))


def read(op: int, handle: int, offset: int, length: int, packing: Packing = Packing.NONE) -> bytes:
    """Asks for `length` bytes at `offset`; with a packing, the host packs the fragments that shrink."""
    return frame(Type.IO, op, IO_REQUEST.pack(handle, 1, packing, offset, length, length, length, 0))


def parse_fragment(payload: bytes | bytearray | memoryview) -> Fragment:
    """The payload of an IO frame that answers a read. Raises NfcProtocol when its numbers make no sense."""
    if len(payload) != IO_REPLY.size:
        raise NfcProtocol(f"an IO frame with {len(payload)} bytes of payload")
    _, direction, compression, offset, request, at, length, packed, _ = IO_REPLY.unpack(payload)
    if direction != 1 or compression not in (Packing.NONE, Packing.ZLIB):
        raise NfcProtocol("an IO frame that is not a read reply, raw or zlib")
    if (compression == Packing.NONE and packed != length) or not 0 < packed <= MAX_FRAGMENT + SLACK:
        raise NfcProtocol(f"a fragment of {length} bytes in {packed}")
    if not 0 < length <= MAX_FRAGMENT or at + length > request:
        raise NfcProtocol(f"a fragment {at}+{length} of a read of {request} bytes")
    return Fragment(offset, request, at, length, Packing(compression), packed)


def unpack(packed: bytes | bytearray | memoryview, into: memoryview) -> None:
    """Fills `into` from a zlib stream. Raises NfcProtocol when it holds anything but exactly that many bytes."""
    engine = zlib.decompressobj()
    try:
        plain = engine.decompress(packed, len(into))
        more = engine.decompress(engine.unconsumed_tail, 1) if not engine.eof else b""
    except zlib.error as exc:
        raise NfcProtocol(f"a packed fragment cannot be unpacked: {exc}") from exc
    if len(plain) != len(into) or more or not engine.eof:
        raise NfcProtocol(f"a packed fragment holds {len(plain)} bytes instead of {len(into)}")
    into[:] = plain


def write(op: int, handle: int, offset: int, length: int, at: int, size: int) -> bytes:
    """Header of a fragment of a write: `size` bytes at `at` of the `length` bytes that are written at `offset`; data follow."""
    return frame(Type.IO, op, IO_REPLY.pack(handle, 0, 0, offset, length, at, size, size, 0))


def parse_written(payload: bytes | bytearray | memoryview) -> None:
    """The answer to a write. Raises NfcProtocol for another IO frame."""
    if len(payload) != IO_REPLY.size or IO_REPLY.unpack(payload)[1] != 0:
        raise NfcProtocol("an IO frame that does not answer a write")


def parse_error(payload: bytes | bytearray | memoryview) -> tuple[int, str]:
    """(code, text) of an error frame; the text is cut to a line."""
    if len(payload) < 4:
        raise NfcProtocol("an error frame without a code")
    (code,) = struct.unpack_from("<I", payload)
    text = bytes(payload[4:]).split(b"\0", 1)[0].decode(errors="replace")
    return code, " ".join(text.split())[:200]
