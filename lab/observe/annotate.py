# SPDX-License-Identifier: MIT
"""Packet comments: rewrites a pcapng file so that chosen frames carry a comment (rule, row, step, verdict).

Every other byte stays as dumpcap wrote it. Shown by `tshark -Y 'frame.comment contains "H5"'` and by Wireshark.
Blocks after the pcapng specification (draft-ietf-opsawg-pcapng): an enhanced packet block (type 6) is 20 bytes of
header, the padded packet, options; option 1 is a comment, option 0 ends the list.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

_SECTION, _PACKET, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 2, 3, 6
_MAX_BLOCK = 1 << 26


class NotPcapng(ValueError):
    """The file is not pcapng, or is damaged before its end."""


def annotate(capture: Path, comments: Mapping[int, str]) -> int:
    """Puts `comments` (frame number, counted from 1 → text) into the capture; returns how many were placed.

    The file is replaced in one rename. A block that the capture's end cut off is left out.

    Raises:
        NotPcapng: what is there can not be read as blocks.
    """
    target = capture.with_name(capture.name + ".new")
    try:
        with capture.open("rb") as source, target.open("wb") as sink:
            placed = _rewrite(source, sink, comments)
        target.replace(capture)
    finally:
        target.unlink(missing_ok=True)
    return placed


def _rewrite(source: BinaryIO, sink: BinaryIO, comments: Mapping[int, str]) -> int:
    order, number, placed = "<", 0, 0
    first = True
    while len(head := source.read(8)) == 8:
        kind = struct.unpack("<I", head[:4])[0]
        if kind == _SECTION:
            magic = source.read(4)
            order = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}.get(magic, "")
            if not order:
                raise NotPcapng("bad byte-order magic in a section header")
        elif first:
            raise NotPcapng("no section header at the start")
        else:
            magic = b""
        first = False
        kind, length = struct.unpack(order + "II", head)
        if length < 12 or length % 4 or length > _MAX_BLOCK:
            raise NotPcapng(f"a block of {length} bytes")
        rest = source.read(length - 8 - len(magic))
        if len(rest) != length - 8 - len(magic):
            break
        body = magic + rest[:-4]
        if kind in (_PACKET, _SIMPLE, _ENHANCED):
            number += 1
            if kind == _ENHANCED and number in comments:
                body = _with_comment(body, comments[number], order)
                placed += 1
        tail = struct.pack(order + "I", len(body) + 12)
        sink.write(struct.pack(order + "I", kind) + tail + body + tail)
    return placed


def _with_comment(body: bytes, comment: str, order: str) -> bytes:
    captured = struct.unpack_from(order + "I", body, 12)[0]
    options = 20 + captured + (-captured % 4)
    if options > len(body):
        raise NotPcapng("a packet longer than its block")
    text = comment.encode()[:65000]
    option = struct.pack(order + "HH", 1, len(text)) + text + b"\0" * (-len(text) % 4)
    rest = body[options:] or struct.pack(order + "HH", 0, 0)
    return body[:options] + option + rest
