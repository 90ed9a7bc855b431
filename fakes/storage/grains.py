# SPDX-License-Identifier: MIT
"""Grains: 64 KiB pieces of a disk or of the LUN, and how map entries name them.

*Map entry* (u32): `ABSENT` = look in the layer below, `ZEROED` = reads as zero and hides the layers below, any other
value = LUN grain + 1. *View*: the flattened map of a chain, `array("I")` with one
entry per disk grain, in which 0 = reads as zero.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

GRAIN = 65536
ABSENT = 0
ZEROED = 0xFFFFFFFF
REGION = 16
"""Grains that the allocator tries to keep together: 1 MiB, the file block of VMFS."""

_CHUNK = 1024


def count(size: int) -> int:
    """Grains that `size` bytes need."""
    return -(-size // GRAIN)


def empty_view(grains: int) -> array[int]:
    """A view of a disk of which nothing was written."""
    return array("I", bytes(4 * grains))


def used(entries: memoryview | array[int], start: int = 0, end: int | None = None) -> Iterator[int]:
    """Indices of entries that are not 0; long empty stretches are skipped at memory speed."""
    whole = memoryview(entries)
    end = len(whole) if end is None else end
    blank = bytes(4 * _CHUNK)
    for base in range(start, end, _CHUNK):
        stop = min(base + _CHUNK, end)
        piece = whole[base:stop].tobytes()
        if piece == blank[: len(piece)]:
            continue
        for index, entry in enumerate(memoryview(piece).cast("I"), base):
            if entry:
                yield index


def overlay(view: array[int], entries: memoryview) -> None:
    """Lays one layer's map over `view`, in place."""
    for index in used(entries):
        entry = entries[index]
        view[index] = 0 if entry == ZEROED else entry


def data_runs(view: array[int], start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """`(first grain, grains, allocated)` for [start, end) of a view, neighbours joined."""
    at = start
    while at < end:
        allocated = view[at] != 0
        stop = at + 1
        while stop < end and (view[stop] != 0) == allocated:
            if not allocated and stop + _CHUNK <= end and view[stop : stop + _CHUNK].tobytes() == bytes(4 * _CHUNK):
                stop += _CHUNK
            else:
                stop += 1
        yield at, stop - at, allocated
        at = stop


def byte_ranges(indices: Iterable[int], size: int) -> list[list[int]]:
    """Ascending grain indices as `[start, length]` in bytes, cut at the disk's end."""
    ranges = []
    for first, length in joined(indices):
        start = first * GRAIN
        ranges.append([start, min(length * GRAIN, size - start)])
    return ranges


def joined(indices: Iterable[int]) -> Iterator[tuple[int, int]]:
    """`(first, length)` of each stretch of neighbours in ascending `indices`."""
    first = length = -1
    for index in indices:
        if length > 0 and index == first + length:
            length += 1
            continue
        if length > 0:
            yield first, length
        first, length = index, 1
    if length > 0:
        yield first, length
