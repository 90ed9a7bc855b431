# SPDX-License-Identifier: MIT
"""NFC on the wire: classic messages and AIO frames (nfc reference sections 3 and 4). Pure functions, little-endian.

Classic message: 264 bytes, `u32 type`, body padded with zeros. AIO frame: 16 bytes `magic, type, size, opId`, `size` bytes
of payload, then extras (path, key, data) that `size` does not count.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

CLASSIC_SIZE = 264
AIO_MAGIC = 0xA100DA7A
FRAGMENT = 65536
SECTOR = 512
MAX_PATH = 4096
MAX_PAYLOAD = 65536

FRAME = struct.Struct("<IIII")
IO = struct.Struct("<QIIQIIIII")
IO_FRAME = struct.Struct("<IIII" + "QIIQIIIII")
OPEN_FILE = struct.Struct("<I12xII36x")
OPEN_FILE_REPLY = struct.Struct("<8xQIIII4xI20x")
SOCKET_OPTIONS = struct.Struct("<III")
READ_LENGTH = struct.Struct("<Q")


class WireError(Exception):
    """The peer broke the protocol: the connection ends."""


class Classic(IntEnum):
    """Types of classic messages; the names are inferred."""

    SESSION_COMPLETE = 4
    SESSION_PARAMETERS = 33
    SESSION_PARAMETERS_REPLY = 36
    HANDSHAKE = 43
    VERSION = 51
    OPEN_AIO = 52
    CONNECTION_DATA = 54
    FEATURES = 55


class Aio(IntEnum):
    """Types of AIO frames."""

    ERROR = 1
    OPEN_SESSION = 2
    CLOSE_SESSION = 3
    OPEN_FILE = 4
    CLOSE_FILE = 5
    IO = 7
    SOCKET_OPTIONS = 9
    DISK_DATABASE_GET = 11
    RESOURCE_POOL = 22


PAYLOAD_SIZES: dict[int, int] = {
    Aio.OPEN_SESSION: 16,
    Aio.CLOSE_SESSION: 4,
    Aio.OPEN_FILE: 60,
    Aio.CLOSE_FILE: 8,
    Aio.IO: 44,
    Aio.SOCKET_OPTIONS: 12,
    Aio.DISK_DATABASE_GET: 16,
    Aio.RESOURCE_POOL: 4,
}


class Compression(IntEnum):
    """How the data of one fragment is packed."""

    NONE = 0
    ZLIB = 1
    FASTLZ = 2
    SKIPZ = 3


class FileType(IntEnum):
    """`u32 @16` of the open-file message. 2 is documented; 0 and 1 for plain files are this project's choice."""

    RAW = 0
    TEXT = 1
    DISK = 2


READ_ONLY_FLAG = 0x04  # 0x1e read-only, 0x1a read-write: the difference is this bit


class NfcCode(IntEnum):
    """Codes in error frames. 0x0b is documented; the others are the numbers of the disk library's public error list."""

    FAILED = 1
    OUT_OF_MEMORY = 2
    INVALID_ARGUMENT = 3
    NOT_FOUND = 4
    BUSY = 5
    NOT_SUPPORTED = 6
    FILE_ERROR = 7
    INVALID_FILE_TYPE = 9
    READ_ONLY = 11
    ACCESS = 13
    LOCKED = 15


@dataclass(frozen=True, slots=True)
class Frame:
    """Header of an AIO frame, magic checked."""

    type: int
    size: int
    op: int


@dataclass(frozen=True, slots=True)
class IoHeader:
    """Payload of an IO frame: request, reply and fragment share this layout (44 bytes).

    `length` is the request's, `fragment_offset` counts from the request's `offset`, `packed` is the size on the wire.
    """

    handle: int
    read: bool
    compression: int
    offset: int
    length: int
    fragment_offset: int
    fragment_length: int
    packed: int


@dataclass(frozen=True, slots=True)
class OpenFile:
    """Payload of an open-file request."""

    path_length: int
    type: int
    flags: int

    @property
    def write(self) -> bool:
        """True when the flags ask for writing."""
        return not self.flags & READ_ONLY_FLAG


def classic(kind: int, *words: int, at: int = 4) -> bytes:
    """A classic message with 32-bit `words` from offset `at` on."""
    message = bytearray(CLASSIC_SIZE)
    struct.pack_into("<I", message, 0, kind)
    struct.pack_into(f"<{len(words)}I", message, at, *words)
    return bytes(message)


def classic_words(message: bytes, count: int, at: int = 4) -> tuple[int, ...]:
    """`count` 32-bit words of a classic message from offset `at` on."""
    return struct.unpack_from(f"<{count}I", message, at)


def parse_frame(data: bytes | bytearray) -> Frame:
    """The 16-byte header; raises WireError for a wrong magic."""
    magic, kind, size, op = FRAME.unpack(data)
    if magic != AIO_MAGIC:
        raise WireError(f"not an AIO frame: magic {magic:#010x}")
    return Frame(kind, size, op)


def frame(kind: int, op: int, payload: bytes = b"") -> bytes:
    """An AIO frame whose size counts the whole payload."""
    return FRAME.pack(AIO_MAGIC, kind, len(payload), op) + payload


def parse_io(payload: bytes | bytearray) -> IoHeader:
    """The 44 bytes of an IO request or fragment; raises WireError when they make no sense."""
    handle, direction, compression, offset, length, fragment_offset, fragment_length, packed, _ = IO.unpack(payload)
    if direction > 1:
        raise WireError(f"IO direction {direction}")
    header = IoHeader(handle, direction == 1, compression, offset, length, fragment_offset, fragment_length, packed)
    if header.read:
        (wide,) = READ_LENGTH.unpack_from(payload, 24)
        if wide >> 32:
            raise WireError(f"read of {wide} bytes")
    elif fragment_offset + fragment_length > length:
        raise WireError(f"fragment {fragment_offset}+{fragment_length} beyond its request of {length} bytes")
    return header


def io_frame(op: int, io: IoHeader) -> bytes:
    """Header and payload of an IO frame (60 bytes); the data follows as an extra."""
    return IO_FRAME.pack(
        AIO_MAGIC,
        Aio.IO,
        IO.size,
        op,
        io.handle,
        1 if io.read else 0,
        io.compression,
        io.offset,
        io.length,
        io.fragment_offset,
        io.fragment_length,
        io.packed,
        0,
    )


def parse_open_file(payload: bytes | bytearray) -> OpenFile:
    """The 60 bytes of an open-file request; raises WireError for a path length that cannot be."""
    length, kind, flags = OPEN_FILE.unpack(payload)
    if not 0 < length <= MAX_PATH:
        raise WireError(f"path of {length} bytes")
    return OpenFile(length, kind, flags)


def open_file_reply(op: int, *, handle: int, kind: int, flags: int, capacity: int) -> bytes:
    """`capacity` goes to offset 28: sectors for a disk, bytes for a plain file (this project's choice)."""
    return frame(Aio.OPEN_FILE, op, OPEN_FILE_REPLY.pack(handle, kind, flags, 0, min(capacity, 0xFFFFFFFF), SECTOR))


def error(op: int, code: int, text: str) -> bytes:
    """An error frame: `u32 code`, then the text with a NUL, all counted by `size` (layout: this project's choice)."""
    return frame(Aio.ERROR, op, struct.pack("<I", code) + text.encode() + b"\0")
