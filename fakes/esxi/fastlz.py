# SPDX-License-Identifier: MIT
"""FastLZ, as disk libraries pack the fragments of a write (block format: FastLZ's own description, levels 1 and 2).

A block is a run of instructions: a byte below 32 is followed by so many literals and one; any other copies from what was
unpacked before, its upper three bits giving the length and the others the high part of the distance.
"""

from __future__ import annotations

_FAR = 8191  # distances from here on take two bytes more, in level 2


def decompress(data: bytes | bytearray, size: int) -> bytes:
    """Unpacks a block of at most `size` bytes. Raises ValueError for what is none."""
    if not data or data[0] >> 5 > 1:
        raise ValueError("not a FastLZ block")
    second = data[0] >> 5 == 1
    out = bytearray()
    control, at = data[0] & 31, 1
    try:
        while True:
            if control < 32:
                at += control + 1
                if at > len(data):
                    raise ValueError("FastLZ block cut short")
                out += data[at - control - 1 : at]
            else:
                length, distance, at = _match(data, control, at, second)
                _copy(out, distance, min(length, size + 1 - len(out)))
            if len(out) > size:
                raise ValueError("FastLZ block longer than announced")
            if at == len(data):
                return bytes(out)
            control = data[at]
            at += 1
    except IndexError:
        raise ValueError("FastLZ block cut short") from None


def _match(data: bytes | bytearray, control: int, at: int, second: bool) -> tuple[int, int, int]:
    """Length and distance of a copy, and where the next instruction is."""
    length = (control >> 5) + 2
    if control >> 5 == 7:
        while True:
            length += data[at]
            at += 1
            if not second or data[at - 1] != 255:
                break
    high, low = control & 31, data[at]
    at += 1
    if second and (high, low) == (31, 255):
        return length, (data[at] << 8 | data[at + 1]) + _FAR + 1, at + 2
    return length, (high << 8 | low) + 1, at


def _copy(out: bytearray, distance: int, length: int) -> None:
    """Appends `length` bytes from `distance` back; they may overlap what is appended."""
    if distance > len(out):
        raise ValueError("FastLZ copy from before the block")
    pattern = out[len(out) - distance :][:length]
    out += (pattern * (length // len(pattern) + 1))[:length] if pattern else b""
