# SPDX-License-Identifier: MIT
"""Classic NFC messages: 264 bytes each, `u32 type` and a zero-padded body (nfc reference section 3). Little-endian."""

from __future__ import annotations

import struct
from enum import IntEnum

from engine.modes.nfc.errors import NfcProtocol
from engine.modes.nfc.stream import Stream

SIZE = 264
VERSION = 11
FEATURES = 3
CLIENT_NAME = b"vadplab"
OPERATION = b"nbdmode"


class Type(IntEnum):
    """Types of messages that this client uses; the names are inferred."""

    SESSION_COMPLETE = 4
    SESSION_PARAMETERS = 33
    SESSION_PARAMETERS_REPLY = 36
    HANDSHAKE = 43
    VERSION = 51
    OPEN_AIO = 52
    CONNECTION_DATA = 54
    FEATURES = 55


def message(kind: int, body: bytes = b"") -> bytes:
    """One message."""
    return (struct.pack("<I", kind) + body).ljust(SIZE, b"\0")


def handshake(stream: Stream) -> int:
    """Everything up to the open AIO session; returns the protocol version of the host (11 on ESXi 8, 9 on 7.0.3).

    Raises:
        NfcProtocol: another message than the one that must come.
    """
    stream.send(message(Type.HANDSHAKE, b"PlainText") + message(Type.SESSION_PARAMETERS))
    expect(stream, Type.SESSION_PARAMETERS_REPLY)
    stream.send(message(Type.VERSION, struct.pack("<I", VERSION)))
    (version,) = struct.unpack_from("<I", expect(stream, Type.VERSION), 4)
    stream.send(
        message(Type.CONNECTION_DATA, struct.pack("<II", len(CLIENT_NAME), len(OPERATION)))
        + CLIENT_NAME
        + OPERATION
        + message(Type.FEATURES, struct.pack("<I", FEATURES))
        + message(Type.OPEN_AIO)
    )
    expect(stream, Type.OPEN_AIO)
    return int(version)


def expect(stream: Stream, kind: Type) -> bytes:
    """Reads one message of that type. Raises NfcProtocol for another."""
    data = bytearray(SIZE)
    stream.read_into(memoryview(data))
    (found,) = struct.unpack_from("<I", data)
    if found != kind:
        raise NfcProtocol(f"NFC message {found} instead of {int(kind)}")
    return bytes(data)
