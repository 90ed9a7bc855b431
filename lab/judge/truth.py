# SPDX-License-Identifier: MIT
"""Compares a restored disk with the storage's truth record: a SHA-256 per 64 KiB block of the frozen chain.

The truth was taken by the storage at the instant of the snapshot, from its own chain; nothing of the engine touched it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import InputError, MissingError

BLOCK = 65536
DIGEST = 32


class TruthMissing(MissingError):
    """The storage holds no truth record of the snapshot that the restore point was made from."""

    code = "truth.missing"
    advice = "Compare with a restore point made by this lab; truth records live in the lab's state folder."


class SizeDiffers(InputError):
    """The restored file is not as long as the disk was."""

    code = "truth.size"
    advice = "Restore the disk again; the file is not the disk of this restore point."


@dataclass(frozen=True, slots=True)
class TruthRecord:
    """Digests of one disk as of one snapshot. `digests` is a file of 32 bytes per 64 KiB block."""

    vm: str
    snapshot: str
    key: int
    size: int
    digests: Path


@dataclass(slots=True)
class Comparison:
    """What a comparison found: byte offsets of blocks that differ (the first hundred), and how many blocks were looked at."""

    blocks: int = 0
    differing: int = 0
    offsets: list[int] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """True only when at least one block was compared and none differs."""
        return self.blocks > 0 and self.differing == 0

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"equal": self.equal, "blocks": self.blocks, "differing": self.differing, "offsets": self.offsets}


def find(storage: Path, *, vm: str, mark: str, key: int) -> TruthRecord:
    """The truth record of disk `key` for the snapshot of `vm` whose description holds `mark`, below a storage's state folder.

    Raises:
        TruthMissing: there is none.
    """
    for path in sorted((storage / "truth" / vm).glob("*.json")):
        record = json.loads(path.read_text())
        if mark and mark in str(record.get("description", "")):
            for disk in record["disks"]:
                if int(disk["key"]) == key:
                    digests = Path(disk["digests"])
                    digests = digests if digests.is_absolute() else path.parent / digests
                    return TruthRecord(vm, str(record["id"]), key, int(disk["size"]), digests)
    raise TruthMissing(f"no truth record of {vm}, disk {key}, for mark {mark}")


def compare(image: Path, truth: TruthRecord, progress: Callable[[int, int], None] | None = None) -> Comparison:
    """Reads `image` block by block and compares each digest. `progress(done, total)` counts bytes.

    Raises:
        SizeDiffers: the image has another length than the disk had.
    """
    size = image.stat().st_size
    if size != truth.size:
        raise SizeDiffers(f"{image} has {size} bytes, the disk had {truth.size}")
    digests = truth.digests.read_bytes()
    zero = hashlib.sha256(bytes(BLOCK)).digest()
    found = Comparison()
    with image.open("rb") as file:
        fd = file.fileno()
        data_end = 0
        buffer = bytearray(BLOCK)
        for index, offset in enumerate(range(0, size, BLOCK)):
            length = min(BLOCK, size - offset)
            if offset >= data_end and length == BLOCK:
                data_start, data_end = _next_data(fd, offset, size)
                hole = data_start >= offset + BLOCK
                data_end = data_end if not hole else offset
            else:
                hole = False
            if hole:
                digest = zero
            else:
                view = memoryview(buffer)[:length]
                _read_full(fd, view, offset)
                digest = hashlib.sha256(view).digest()
            found.blocks += 1
            if digest != digests[index * DIGEST : (index + 1) * DIGEST]:
                found.differing += 1
                if len(found.offsets) < 100:
                    found.offsets.append(offset)
            if progress and index % 256 == 0:
                progress(offset, size)
    if progress:
        progress(size, size)
    return found


def _next_data(fd: int, offset: int, size: int) -> tuple[int, int]:
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError:
        return size, size
    return start, os.lseek(fd, start, os.SEEK_HOLE)


def _read_full(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise EOFError(f"file ends at {offset + done}")
        done += count
