# SPDX-License-Identifier: MIT
"""Truth records: found by the snapshot's mark, waited for while they are computed, and each failure by its own name."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path

import pytest

from lab.disks import truth
from lab.disks.truth import BLOCK, SizeDiffers, TruthFailed, TruthMissing, TruthPending

DISK = bytes(range(256)) * 256 + bytes(BLOCK) + b"end" * 1000
"""One block of data, one of zeros, and a short one."""


def digests(data: bytes) -> bytes:
    return b"".join(hashlib.sha256(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK))


def record(storage: Path, *, session: str = "s1", number: int = 3) -> Path:
    folder = storage / "truth" / "vm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}-2000.sha256").write_bytes(digests(DISK))
    disks = [{"key": 2000, "size": len(DISK), "digests": f"{number}-2000.sha256"}]
    path = folder / f"{number}.json"
    path.write_text(json.dumps({"id": number, "description": f"vadplab:{session}", "disks": disks}))
    return path


def pending(storage: Path, *, session: str = "s1", number: int = 3) -> Path:
    folder = storage / "truth" / "vm"
    folder.mkdir(parents=True, exist_ok=True)
    header = {"id": number, "description": f"vadplab:{session}", "disks": []}
    path = folder / f"{number}.pending"
    path.write_text(json.dumps({"header": header, "previous": None, "disks": []}))
    return path


def test_a_record_is_found_by_its_mark_and_compared(tmp_path: Path) -> None:
    record(tmp_path, session="other", number=2)
    record(tmp_path)
    found = truth.find(tmp_path, vm="vm", mark="s1", key=2000, wait=0)
    assert (found.snapshot, found.size) == ("3", len(DISK))
    image = tmp_path / "disk"
    image.write_bytes(DISK)
    assert truth.compare(image, found).to_dict() == {"equal": True, "blocks": 3, "differing": 0, "offsets": []}
    image.write_bytes(DISK[:-1] + b"X")
    assert truth.compare(image, found).offsets == [2 * BLOCK]
    image.write_bytes(DISK[:-1])
    with pytest.raises(SizeDiffers):
        truth.compare(image, found)


def test_a_pending_record_is_waited_for(tmp_path: Path) -> None:
    waiting = pending(tmp_path)

    def finish() -> None:
        record(tmp_path)
        waiting.unlink()

    timer = threading.Timer(0.3, finish)
    timer.start()
    try:
        assert truth.find(tmp_path, vm="vm", mark="s1", key=2000, wait=60).key == 2000
    finally:
        timer.join()


def test_a_record_that_stays_pending_says_so(tmp_path: Path) -> None:
    pending(tmp_path)
    began = time.monotonic()
    with pytest.raises(TruthPending, match="still being computed") as caught:
        truth.find(tmp_path, vm="vm", mark="s1", key=2000, wait=0.2)
    assert time.monotonic() - began >= 0.2 and caught.value.exit_code == 3


def test_a_missing_record_is_not_waited_for(tmp_path: Path) -> None:
    pending(tmp_path, session="another")
    with pytest.raises(TruthMissing) as caught:
        truth.find(tmp_path, vm="vm", mark="s1", key=2000, wait=3600)
    assert caught.value.to_dict()["code"] == "truth.missing"


def test_damaged_records_fail_by_name(tmp_path: Path) -> None:
    path = record(tmp_path)
    with pytest.raises(TruthFailed, match="no such disk"):
        truth.find(tmp_path, vm="vm", mark="s1", key=2001, wait=0)
    (tmp_path / "truth/vm/3-2000.sha256").write_bytes(digests(DISK)[:-1])
    with pytest.raises(TruthFailed, match="95 bytes instead of 96"):
        truth.find(tmp_path, vm="vm", mark="s1", key=2000, wait=0)
    (tmp_path / "truth/vm/3-2000.sha256").unlink()
    with pytest.raises(TruthFailed, match="No such file"):
        truth.find(tmp_path, vm="vm", mark="s1", key=2000, wait=0)
    path.write_text("{")
    with pytest.raises(TruthFailed, match="damaged"):
        truth.find(tmp_path, vm="vm", mark="s1", key=2000, wait=0)
