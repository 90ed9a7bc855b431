# SPDX-License-Identifier: MIT
"""AIO frames of NFC (nfc reference section 4): pure functions, little-endian.

A frame is 16 bytes `magic, type, size, opId`, then `size` bytes of payload, then extras (path, data) that `size` does not
count. A read is answered by one or more IO frames with the request's opId, each with a fragment of at most 64 KiB, in any
order.
"""

from __future__ import annotations

import struct
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
READ_ONLY = 0x1E


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


@dataclass(frozen=True, slots=True)
class Opened:
    """Reply to an open: `handle`, and `capacity` at offset 28: sectors or bytes of a disk, bytes of a plain file."""

    handle: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of the reply to a read: `offset` of the request, `at` within the request, `length` in bytes."""

    offset: int
    request: int
    at: int
    length: int


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


def open_file(op: int, path: str, kind: FileType) -> bytes:
    """Opens `path` (`[datastore1] vm/vm.vmdk`) for reading."""
    name = path.encode()
    return frame(Type.OPEN_FILE, op, struct.pack("<I12xII36x", len(name), kind, READ_ONLY), name)


def parse_opened(payload: bytes | bytearray | memoryview) -> Opened:
    """Reply to `open_file`. Raises NfcProtocol."""
    if len(payload) != OPEN_REPLY.size:
        raise NfcProtocol(f"an open reply of {len(payload)} bytes")
    handle, _, _, _, capacity, sector = OPEN_REPLY.unpack(payload)
    if sector not in (0, 512):
        raise NfcProtocol(f"a file with sectors of {sector} bytes")
    return Opened(handle, capacity)


def close_file(op: int, handle: int) -> bytes:
    """Closes a file."""
    return frame(Type.CLOSE_FILE, op, struct.pack("<Q", handle))


def read(op: int, handle: int, offset: int, length: int) -> bytes:
    """Asks for `length` bytes at `offset`, uncompressed."""
    return frame(Type.IO, op, IO_REQUEST.pack(handle, 1, 0, offset, length, length, length, 0))


def parse_fragment(payload: bytes | bytearray | memoryview) -> Fragment:
    """The payload of an IO frame that answers a read. Raises NfcProtocol when its numbers make no sense."""
    if len(payload) != IO_REPLY.size:
        raise NfcProtocol(f"an IO frame with {len(payload)} bytes of payload")
    _, direction, compression, offset, request, at, length, packed, _ = IO_REPLY.unpack(payload)
    if direction != 1 or compression != 0 or packed != length:
        raise NfcProtocol("an IO frame that is not an uncompressed read reply")
    if not 0 < length <= MAX_FRAGMENT or at + length > request:
        raise NfcProtocol(f"a fragment {at}+{length} of a read of {request} bytes")
    return Fragment(offset, request, at, length)


def parse_error(payload: bytes | bytearray | memoryview) -> tuple[int, str]:
    """(code, text) of an error frame; the text is cut to a line."""
    if len(payload) < 4:
        raise NfcProtocol("an error frame without a code")
    (code,) = struct.unpack_from("<I", payload)
    text = bytes(payload[4:]).split(b"\0", 1)[0].decode(errors="replace")
    return code, " ".join(text.split())[:200]
