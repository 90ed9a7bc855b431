# SPDX-License-Identifier: MIT
"""Frames: a u32 big-endian length, then one msgpack value of that length (`docs/wire.md`).

Both the asyncio side (`read`, `write`) and the blocking side (`send`, `recv`, for data-path threads) are here. A frame is
at most `MAX_FRAME` bytes; a longer length is refused before anything is read or allocated.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import msgpack  # type: ignore[import-untyped]

from engine.errors import ConnectReset, VadplabError

MAX_FRAME = 64 * 1024 * 1024
HEADER = struct.Struct(">I")


class WireError(VadplabError):
    """The peer did not speak the wire format of the engine."""

    code = "wire.failed"
    symptom = "protocol error"
    advice = "Check that both sides run the same version and that nothing answers in the peer's place."


class FrameTooLong(WireError):
    """A frame announces or has more than the allowed length."""

    code = "wire.too-long"


class FrameTruncated(WireError):
    """The connection ended within a frame."""

    code = "wire.truncated"


class FrameMalformed(WireError):
    """A frame is not one msgpack value, or not a message of the engine."""

    code = "wire.malformed"


class WireClosed(ConnectReset):
    """The peer ended the connection where the next frame would begin."""

    code = "wire.closed"


def pack(obj: Any) -> bytes:
    """One frame. Raises FrameTooLong, FrameMalformed (a value msgpack does not know)."""
    try:
        body: bytes = msgpack.packb(obj, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as exc:
        raise FrameMalformed(f"value cannot be sent: {type(exc).__name__}") from exc
    if len(body) > MAX_FRAME:
        raise FrameTooLong(f"frame of {len(body)} bytes; at most {MAX_FRAME}")
    return HEADER.pack(len(body)) + body


def unpack(body: bytes | bytearray | memoryview) -> Any:
    """The value of one frame's body (without the length). Raises FrameMalformed."""
    try:
        return msgpack.unpackb(body, raw=False, strict_map_key=True, timestamp=0, ext_hook=_no_extensions)
    except FrameMalformed:
        raise
    except Exception as exc:  # msgpack raises classes of several families; each means the same to us
        raise FrameMalformed(f"frame is not one msgpack value: {type(exc).__name__}") from exc


def length(header: bytes) -> int:
    """The length that a header announces, in bytes. Raises FrameTooLong."""
    size: int = HEADER.unpack(header)[0]
    if size > MAX_FRAME:
        raise FrameTooLong(f"peer announces a frame of {size} bytes; at most {MAX_FRAME}")
    return size


def send(sock: socket.socket, obj: Any) -> int:
    """Sends one frame on a blocking socket; its own timeout is the deadline. Gives the bytes sent."""
    data = pack(obj)
    sock.sendall(data)
    return len(data)


def recv(sock: socket.socket) -> Any:
    """Reads one frame from a blocking socket; its own timeout is the deadline. Raises WireClosed, WireError."""
    header = _exactly(sock, HEADER.size, at_start=True)
    return unpack(_exactly(sock, length(bytes(header))))


async def read(reader: asyncio.StreamReader) -> Any:
    """Reads one frame. Raises WireClosed (the peer ended between frames) and the WireErrors."""
    return (await read_sized(reader))[0]


async def read_sized(reader: asyncio.StreamReader) -> tuple[Any, int]:
    """As `read`, with the bytes that the frame took."""
    try:
        header = await reader.readexactly(HEADER.size)
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise FrameTruncated("connection ended within a frame's length") from exc
        raise WireClosed("the peer ended the connection") from exc
    size = length(header)
    try:
        return unpack(await reader.readexactly(size)), HEADER.size + size
    except asyncio.IncompleteReadError as exc:
        raise FrameTruncated(f"connection ended after {len(exc.partial)} of {size} bytes of a frame") from exc


def _exactly(sock: socket.socket, size: int, *, at_start: bool = False) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        got = sock.recv_into(view[done:], size - done)
        if not got:
            if at_start and not done:
                raise WireClosed("the peer ended the connection")
            raise FrameTruncated(f"connection ended after {done} of {size} bytes")
        done += got
    return data


def _no_extensions(code: int, data: bytes) -> Any:
    raise FrameMalformed(f"msgpack extension {code} is not of this protocol")
