# SPDX-License-Identifier: MIT
"""Reading back beside the writer: few reads, never before the bytes were written, and every damaged cluster is named."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest
from blake3 import blake3

from engine.store.errors import Damaged
from engine.store.readback import ReadBack

CLUSTER = 1 << 16
START = CLUSTER
BATCHES, EACH = 40, 4
"""Batches of raw clusters: 10 MiB, more than is held in memory at a time."""


class Written:
    """A file of raw clusters, and a writer that says how far it has come."""

    def __init__(self, folder: Path) -> None:
        rng = random.Random(7)
        self.path = folder / "disk.qcow2"
        self.clusters = [rng.randbytes(CLUSTER) for _ in range(BATCHES * EACH)]
        self.path.write_bytes(bytes(START) + b"".join(self.clusters))
        self.length = self.path.stat().st_size
        self._done = threading.Condition()
        self._upto = 0

    def advance(self, upto: int) -> None:
        with self._done:
            self._upto = upto
            self._done.notify_all()

    def wait(self, offset: int) -> int:
        with self._done:
            assert self._done.wait_for(lambda: self._upto >= offset, 10)
            return self._upto

    def expect_all(self, readback: ReadBack) -> None:
        for batch in range(BATCHES):
            first = batch * EACH
            places = [START + (first + n) * CLUSTER for n in range(EACH)]
            digests = b"".join(blake3(piece).digest() for piece in self.clusters[first : first + EACH])
            readback.expect(places[-1] + CLUSTER, first, [CLUSTER] * EACH, places, digests)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(begin, end) of every read of the file."""
    found, preadv = [], os.preadv

    def counted(fd: int, buffers: list[memoryview], offset: int) -> int:
        count = preadv(fd, buffers, offset)
        found.append((offset, offset + count))
        return count

    monkeypatch.setattr(os, "preadv", counted)
    return found


def test_what_is_written_is_read_in_large_pieces(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    file = Written(tmp_path)
    readback = ReadBack(file.path, start=START, direct=False, wait_written=file.wait)
    file.expect_all(readback)
    file.advance(file.length)
    blocks = readback.finish(file.length)
    readback.close()
    assert blocks == b"".join(blake3(piece).digest() for piece in [bytes(START), *file.clusters])
    assert len(reads) <= 10, "a read a batch would be forty"


def test_nothing_is_read_before_it_was_written(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    """What lies behind the writer's mark is not yet what was sent: had it been read ahead, it would be called damaged."""
    file = Written(tmp_path)
    whole = file.path.read_bytes()
    half = START + 17 * CLUSTER
    file.path.write_bytes(whole[:half] + bytes(len(whole) - half))
    readback = ReadBack(file.path, start=START, direct=False, wait_written=file.wait)
    file.expect_all(readback)
    file.advance(half)
    end = START + 16 * CLUSTER
    deadline = time.monotonic() + 10
    while not (reads and reads[-1][1] >= end):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert max(at for _, at in reads) <= half
    file.path.write_bytes(whole)
    file.advance(file.length)
    readback.finish(file.length)
    readback.close()


@pytest.mark.parametrize("cluster", [0, 5, 100, BATCHES * EACH - 1])
def test_a_flipped_bit_is_found_wherever_it_lies(tmp_path: Path, cluster: int) -> None:
    file = Written(tmp_path)
    with file.path.open("r+b") as damaged:
        damaged.seek(START + cluster * CLUSTER + 4321)
        damaged.write(bytes([file.clusters[cluster][4321] ^ 0x10]))
    readback = ReadBack(file.path, start=START, direct=False, wait_written=file.wait)
    file.expect_all(readback)
    file.advance(file.length)
    with pytest.raises(Damaged, match=f"at offset {cluster * CLUSTER} "):
        readback.finish(file.length)
    readback.close()
