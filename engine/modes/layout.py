# SPDX-License-Identifier: MIT
"""Where a disk's areas lie on the datastore's LUN.

A *layout reader* gives a `Layout`; today there is one, which reads the map file beside the disk through NFC. On a real
datastore the layout is in the file system on the LUN (VMFS), and a reader of that would be a second one.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from engine.modes.errors import SanUnsupported
from engine.modes.iscsi.scsi import canonical
from engine.modes.network import NetworkSession
from engine.modes.nfc.errors import OpenFailed
from engine.modes.source import Extent

SCHEMA = "vadplab.san-map/1"
MAX_MAP = 256 << 20
SECTOR = 512


@dataclass(frozen=True, slots=True)
class Layout:
    """`naa`: hex digits of the LUN's identity. `size`: bytes of the disk. `areas`: (byte of the disk, bytes, byte of the LUN),
    ascending; what they leave out reads as zeros."""

    naa: str
    size: int
    areas: tuple[tuple[int, int, int], ...]

    def extents(self) -> list[Extent]:
        """Allocated areas of the disk, neighbours joined."""
        found: list[Extent] = []
        for at, length, _ in self.areas:
            if found and sum(found[-1]) == at:
                found[-1] = (found[-1][0], found[-1][1] + length)
            else:
                found.append((at, length))
        return found

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """The parts of a range of the disk that lie on the LUN: (byte of the disk, bytes, byte of the LUN)."""
        index = max(bisect_right(self.areas, offset, key=lambda area: area[0]) - 1, 0)
        end = offset + length
        for at, size, where in self.areas[index:]:
            if at >= end:
                return
            begin, stop = max(at, offset), min(at + size, end)
            if begin < stop:
                yield begin, stop - begin, where + begin - at


class LayoutReader(Protocol):
    """Finds a disk's layout."""

    def read(self, session: NetworkSession, path: str, capacity: int) -> Layout:
        """Layout of the disk at datastore path `path`, as of that file. Raises SanUnsupported when it cannot be had."""


class MapFile:
    """Reads `<disk>-map` over the NFC connection of step 19 (`[ds] web/web-000001-map`): a file that only this lab's hosts have."""

    def read(self, session: NetworkSession, path: str, capacity: int) -> Layout:
        """See `LayoutReader.read`."""
        name = f"{path.removesuffix('.vmdk')}-map"
        where = session.client.raw.where
        try:
            data = session.client.read_file(name, limit=MAX_MAP, pack=True)
        except OpenFailed as exc:
            raise SanUnsupported(f"{session.client.raw.route}: no map of {path}: {exc.message}", **where) from exc
        try:
            layout = parse(json.loads(data))
            if layout.size != capacity:
                raise ValueError(f"it is of a disk of {layout.size} bytes instead of {capacity}")
        except (ValueError, TypeError, KeyError, RecursionError) as exc:
            raise SanUnsupported(f"{name} cannot be used: {exc}", **where) from exc
        return layout


def parse(document: Any) -> Layout:
    """The layout of a map's JSON. Raises ValueError, TypeError or KeyError when it is not one."""
    if document["schema"] != SCHEMA:
        raise ValueError("another schema")
    size, lun = document["size"], document["lun"]["size"]
    areas: list[tuple[int, int, int]] = []
    last = 0
    for at, length, where in document["extents"]:
        numbers = (at, length, where)
        if any(type(number) is not int or number < 0 or number % SECTOR for number in numbers):
            raise ValueError(f"the area {numbers} is not of whole sectors")
        if at < last or not length or at + length > size or where + length > lun:
            raise ValueError(f"the area {numbers} lies outside disk or LUN, or is out of order")
        last = at + length
        areas.append((at, length, where))
    return Layout(canonical(str(document["lun"]["naa"])), int(size), tuple(areas))
