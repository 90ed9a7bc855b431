# SPDX-License-Identifier: MIT
"""Compares a restored disk with the storage's truth record: a SHA-256 per 64 KiB block of the frozen chain.

The truth is of the instant of the snapshot, from the storage's own chain; nothing of the engine touched it. It is computed
behind the run: `<id>.pending` stands for a record that will come, and is waited for while a storage is there to finish it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import InputError, MissingError

BLOCK = 65536
DIGEST = 32
WAIT = 120.0
"""Seconds for which a record that is being computed is waited for."""
_POLL = 0.1


class TruthMissing(MissingError):
    """The storage holds no truth record of the snapshot that the restore point was made from."""

    code = "truth.missing"
    advice = "Compare with a restore point made by this lab; truth records live in the lab's state folder."


class TruthPending(TruthMissing):
    """The storage has not finished the truth record of that snapshot."""

    code = "truth.pending"
    symptom = "pending"
    advice = "Compare again in a moment, with the lab up: the storage computes the record behind the run."


class TruthFailed(TruthMissing):
    """The truth record can not be used: it is damaged or incomplete."""

    code = "truth.failed"
    symptom = "failed"
    advice = (
        "The storage's log says why (`vadplab logs`); the restore point itself may be whole: `vadplab points verify`."
    )


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


def find(storage: Path, *, vm: str, mark: str, key: int, wait: float = WAIT) -> TruthRecord:
    """The truth record of disk `key` for the snapshot of `vm` whose description holds `mark`, below a storage's state folder.

    Args:
        wait: seconds for which a record that is still being computed is waited for; 0 with the lab down.

    Raises:
        TruthMissing: there is none. TruthPending: not in time. TruthFailed: it can not be read, or has no such disk.
    """
    folder, end = storage / "truth" / vm, time.monotonic() + wait
    what = f"truth record of {vm}, disk {key}, for mark {mark}"
    while True:
        pending = _with_mark(folder, ".pending", mark, what)  # looked for first: it goes when the record has come
        found = _with_mark(folder, ".json", mark, what)
        if found is not None:
            return _disk(*found, vm=vm, key=key, what=what)
        if pending is None:
            raise TruthMissing(f"no {what}")
        if time.monotonic() >= end:
            raise TruthPending(f"the {what} is still being computed")
        time.sleep(_POLL)


def _with_mark(folder: Path, suffix: str, mark: str, what: str) -> tuple[Path, dict[str, Any]] | None:
    for path in sorted(folder.glob(f"*{suffix}")):
        try:
            record = json.loads(path.read_text())
        except FileNotFoundError:
            continue  # it was finished meanwhile
        except ValueError as exc:
            if suffix == ".pending":
                continue  # just being written
            raise TruthFailed(f"{what}: {path.name} is damaged: {exc}") from exc
        header = record.get("header", record)
        if mark and mark in str(header.get("description", "")):
            return path, record
    return None


def _disk(path: Path, record: dict[str, Any], *, vm: str, key: int, what: str) -> TruthRecord:
    for disk in record.get("disks", []):
        if int(disk["key"]) != key:
            continue
        digests = Path(disk["digests"])
        digests = digests if digests.is_absolute() else path.parent / digests
        size, expected = int(disk["size"]), -(-int(disk["size"]) // BLOCK) * DIGEST
        try:
            length = digests.stat().st_size
        except OSError as exc:
            raise TruthFailed(f"{what}: {digests.name}: {exc.strerror}") from exc
        if length != expected:
            raise TruthFailed(f"{what}: {digests.name} has {length} bytes instead of {expected}")
        return TruthRecord(vm, str(record["id"]), key, size, digests)
    raise TruthFailed(f"{what}: the record {path.name} has no such disk")


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
