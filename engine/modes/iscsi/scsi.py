# SPDX-License-Identifier: MIT
"""SCSI commands that read, and the parsing of their answers (SPC-4, SBC-3). Pure functions, big-endian."""

from __future__ import annotations

import re
import struct

from engine.modes.errors import SanProtocol

IDENTIFICATION_PAGE = 0x83
ALLOCATION = 4096
"""Bytes asked for with INQUIRY and REPORT LUNS: more than any real answer."""
_NAA = 3
_TEXT_IDENTITY = re.compile(r"(?:naa\.|0x)?([0-9a-f]{16}(?:[0-9a-f]{16})?)")


def inquiry(page: int) -> bytes:
    """INQUIRY of a vital product data page."""
    return struct.pack(">BBBHB", 0x12, 1, page, ALLOCATION, 0)


def report_luns() -> bytes:
    """REPORT LUNS."""
    return struct.pack(">BxBxxxIxB", 0xA0, 0, ALLOCATION, 0)


def read_capacity() -> bytes:
    """READ CAPACITY(16); 32 bytes answer it."""
    return struct.pack(">BBQIBB", 0x9E, 0x10, 0, 32, 0, 0)


def read(block: int, count: int) -> bytes:
    """READ(16) of `count` blocks."""
    return struct.pack(">BBQIBB", 0x88, 0, block, count, 0, 0)


def luns(data: bytes) -> list[int]:
    """LUN numbers of a REPORT LUNS answer (peripheral and flat addressing; others are left out)."""
    if len(data) < 8:
        raise SanProtocol(f"a list of LUNs of {len(data)} bytes")
    (length,) = struct.unpack_from(">I", data)
    found = []
    for at in range(8, 8 + min(length, len(data) - 8) // 8 * 8, 8):
        method, low = data[at] >> 6, data[at + 1]
        if method == 0 and not data[at] and not any(data[at + 2 : at + 8]):
            found.append(low)
        elif method == 1 and not any(data[at + 2 : at + 8]):
            found.append((data[at] & 0x3F) << 8 | low)
    return found


def capacity(data: bytes) -> tuple[int, int]:
    """(blocks, bytes of a block) of a READ CAPACITY(16) answer."""
    if len(data) < 12:
        raise SanProtocol(f"a capacity of {len(data)} bytes")
    last, block = struct.unpack_from(">QI", data)
    if block not in (512, 4096):
        raise SanProtocol(f"a LUN with blocks of {block} bytes")
    return last + 1, block


def identities(data: bytes) -> set[str]:
    """NAA identities (16 or 32 hex digits) of an identification page: binary NAA designators, and texts that hold one."""
    if len(data) < 4 or data[1] != IDENTIFICATION_PAGE:
        raise SanProtocol("not an identification page")
    end = min(4 + struct.unpack_from(">H", data, 2)[0], len(data))
    found, at = set(), 4
    while at + 4 <= end:
        code_set, kind, length = data[at] & 0x0F, data[at + 1] & 0x0F, data[at + 3]
        value = data[at + 4 : min(at + 4 + length, end)]
        if code_set == 1 and kind == _NAA and len(value) in (8, 16):
            found.add(value.hex())
        elif code_set in (2, 3):
            found |= text_identity(value)
        at += 4 + length
    return found


def text_identity(value: bytes) -> set[str]:
    """The NAA identity that a text is, if it is one."""
    text = value.split(b"\0")[0].decode("ascii", "replace").strip().lower()
    match = _TEXT_IDENTITY.fullmatch(text)
    return {match[1]} if match else set()


def canonical(naa: str) -> str:
    """The hex digits of `naa.6000…`, `0x6000…` or `6000…`."""
    return naa.strip().lower().removeprefix("naa.").removeprefix("0x")
