# SPDX-License-Identifier: MIT
"""Where on a disk a file system lies: on its bare sectors, or in a partition (MBR, GPT)."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

from engine.errors import InputError
from engine.filesystem.ext4 import Ext4, NoFileSystem, Readable

_SECTOR = 512


class PartitionUnknown(InputError):
    """The disk has no such partition."""

    code = "files.partition"
    advice = "Name one of those, or none when the disk has no partitions."


def open_system(disk: Readable, partition: int | None = None) -> Ext4:
    """The file system of a disk: on its bare sectors, or in a partition.

    Args:
        partition: 1, 2, …, None: the file system on the bare disk, or on its only Linux partition.

    Raises:
        NoFileSystem, PartitionUnknown, and what reading the disk raises.
    """
    if partition is None:
        with contextlib.suppress(NoFileSystem):
            return Ext4(disk)
    found = list(partitions(disk))
    if partition is not None:
        starts = [start for number, start in found if number == partition]
        if not starts:
            known = ", ".join(str(number) for number, _ in found) or "none"
            raise PartitionUnknown(f"there is no partition {partition} (there are: {known})")
        return Ext4(disk, starts[0])
    systems: list[Ext4] = []
    for _, start in found:
        with contextlib.suppress(NoFileSystem):
            systems.append(Ext4(disk, start))
    if len(systems) != 1:
        raise NoFileSystem(
            "the disk holds no ext2, ext3 or ext4 file system" if not systems else "name one of its partitions"
        )
    return systems[0]


def partitions(disk: Readable) -> Iterator[tuple[int, int]]:
    """(number, offset in bytes) of a disk's partitions: GPT, or the four primary ones of an MBR."""
    first = disk.read(0, 2 * _SECTOR)
    if len(first) < 2 * _SECTOR or first[510:512] != b"\x55\xaa":
        return
    if first[_SECTOR : _SECTOR + 8] == b"EFI PART":
        (lba,), (count, size) = (
            struct.unpack_from("<Q", first, _SECTOR + 72),
            struct.unpack_from("<II", first, _SECTOR + 80),
        )
        if size < 128 or count > 1024:
            return
        table = disk.read(lba * _SECTOR, count * size)
        for number in range(min(count, len(table) // size)):
            entry = table[number * size : (number + 1) * size]
            if entry[:16] != bytes(16):
                yield number + 1, struct.unpack_from("<Q", entry, 32)[0] * _SECTOR
        return
    for number in range(4):
        entry = first[446 + number * 16 : 462 + number * 16]
        if entry[4]:
            yield number + 1, struct.unpack_from("<I", entry, 8)[0] * _SECTOR
