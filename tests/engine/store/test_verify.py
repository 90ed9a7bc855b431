# SPDX-License-Identifier: MIT
"""Damage is found, named with its offset, and refused; what is intact is said."""

from __future__ import annotations

import mmap
import random
from pathlib import Path

import pytest

from engine.store import durable
from engine.store.clusters import CLUSTER_BITS, ZERO_DIGEST, Packer
from engine.store.digests import DigestTable
from engine.store.errors import Damaged, FormatError, PointNotFound
from engine.store.point_disk import PointDisk
from engine.store.points import Points
from engine.store.qcow2.reader import Qcow2Reader
from engine.store.restore import to_file
from engine.store.sparse import SparseFile
from engine.store.target import TargetDisk
from engine.store.verify import verify_disk
from tests.engine.store.disks import POINT, allocated, fill, make_point, store
from tests.engine.store.test_qcow2 import mixed

CLUSTER = 1 << CLUSTER_BITS
SIZE = 40 * CLUSTER + 512


@pytest.fixture
def points(tmp_path: Path) -> Points:
    (tmp_path / "repository").mkdir()
    return Points(tmp_path / "repository")


def flip(path: Path, offset: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ bit]))


def places(path: Path) -> dict[int, tuple[int, int]]:
    """Offset and safe length of the stored bytes of each cluster."""
    found = {}
    with Qcow2Reader(path) as reader:
        for cluster in allocated(reader):
            hit = reader.find(cluster)
            assert hit is not None
            found[cluster] = (hit[1].offset, hit[1].length - (511 if hit[1].compressed else 0))
    return found


def test_restore_equals_the_source(points: Points, tmp_path: Path) -> None:
    content = mixed(SIZE, 8)
    with PointDisk(make_point(points, content), 2000) as disk:
        stats = to_file(disk, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    assert stats.size == SIZE and stats.clusters == len(places(next(points.repository.glob("*/*/*/disk-2000.qcow2"))))
    assert not list(tmp_path.glob("*.part"))


def test_holes_stay_holes(points: Points, tmp_path: Path) -> None:
    content = bytearray(64 << 20)
    content[5 << 20 : (5 << 20) + 9] = b"something"
    with PointDisk(make_point(points, bytes(content)), 2000) as disk:
        assert to_file(disk, tmp_path / "out").written == CLUSTER
    assert (tmp_path / "out").stat().st_blocks * 512 < 1 << 20
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.parametrize("seed", range(6))
def test_one_flipped_bit_is_refused_by_name_and_offset(points: Points, tmp_path: Path, seed: int) -> None:
    folder = make_point(points, mixed(SIZE, 8))
    rng = random.Random(seed)
    stored = places(folder / "disk-2000.qcow2")
    cluster = rng.choice(sorted(stored))
    offset, length = stored[cluster]
    flip(folder / "disk-2000.qcow2", offset + rng.randrange(max(1, length)), 1 << rng.randrange(8))
    with PointDisk(folder, 2000) as disk, pytest.raises(Damaged) as caught:
        to_file(disk, tmp_path / "out")
    assert f"restore point {POINT}, disk-2000.qcow2: refused at offset {cluster * CLUSTER}" in caught.value.message
    assert "40 of 41 blocks of 64 KiB are intact" in caught.value.message
    assert list(tmp_path.glob("out*")) == []


def test_every_damaged_block_is_counted(points: Points, tmp_path: Path) -> None:
    folder = make_point(points, random.Random(3).randbytes(SIZE - 512))
    for cluster in (3, 17, 38):
        flip(folder / "disk-2000.qcow2", places(folder / "disk-2000.qcow2")[cluster][0] + 100)
    report = verify_disk(folder / "disk-2000.qcow2", DigestTable.load(folder / "disk-2000.digests", SIZE - 512))
    assert report.damaged == [3, 17, 38] and report.problems == []
    assert "37 of 40 blocks" in report.describe()


def test_a_changed_digest_file_is_refused(points: Points) -> None:
    folder = make_point(points, mixed(SIZE, 8))
    flip(folder / "disk-2000.digests", 77)
    with pytest.raises(Damaged, match=r"disk-2000\.digests does not match the manifest"):
        PointDisk(folder, 2000)


def test_metadata_damage_is_found(points: Points) -> None:
    folder = make_point(points, mixed(SIZE, 8))
    path = folder / "disk-2000.qcow2"
    table = DigestTable.load(folder / "disk-2000.digests", SIZE)
    assert verify_disk(path, table).intact
    with Qcow2Reader(path) as reader:
        l2, refcounts = reader.l1[0] & ((1 << 56) - 1), reader.header.refcount_offset
        used = allocated(reader)[0]
    for offset in (0, 31, l2 + 8 * used + 5, refcounts + 5, refcounts - CLUSTER + 3):
        flip(path, offset)
        assert not verify_disk(path, table).intact, offset
        flip(path, offset)
    assert verify_disk(path, table).intact


def test_a_cut_file_is_found(points: Points) -> None:
    folder = make_point(points, mixed(SIZE, 8))
    path = folder / "disk-2000.qcow2"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - CLUSTER)
    assert not verify_disk(path, DigestTable.load(folder / "disk-2000.digests", SIZE)).intact


def test_a_missing_block_is_found(tmp_path: Path) -> None:
    content = mixed(SIZE, 8)
    stored = store(tmp_path, content)
    table = DigestTable.load(tmp_path / stored.digests, SIZE)
    table.put(0, Packer().pack(0, memoryview(b"x" * CLUSTER)).digests)
    assert 0 in verify_disk(tmp_path / stored.file, table).damaged
    table.put(1, ZERO_DIGEST)


def test_commit_reads_back_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that loses one write: commit must refuse, and leave no digest file behind."""
    real, writes = durable.write_at, []

    def lossy(fd: int, data: bytes | memoryview, offset: int) -> None:
        writes.append(offset)
        real(fd, memoryview(mmap.mmap(-1, len(data))) if len(writes) == 1 else data, offset)

    with TargetDisk(tmp_path, "disk-2000.qcow2", 6 << 20) as disk:
        monkeypatch.setattr(durable, "write_at", lossy)
        fill(disk, random.Random(1).randbytes(6 << 20))
        with pytest.raises(Damaged, match="read back after it was written"):
            disk.commit()
    assert not (tmp_path / "disk-2000.digests").exists()


def test_commit_notices_a_cluster_that_never_came(tmp_path: Path) -> None:
    with TargetDisk(tmp_path, "disk-2000.qcow2", 6 << 20) as disk:
        fill(disk, mixed(6 << 20, 1))
        with pytest.raises(Damaged, match="clusters are missing"):
            disk.commit(root="0" * 64)


def test_lying_batches(tmp_path: Path) -> None:
    with TargetDisk(tmp_path, "disk-2000.qcow2", 1 << 20) as disk:
        batch = Packer().pack(0, memoryview(b"a" * CLUSTER))
        payload = memoryview(b"".join(batch.parts))
        for first, lengths, digests in (
            (99, batch.lengths, batch.digests),
            (0, [*batch.lengths, 5], batch.digests),
            (0, batch.lengths, batch.digests[:-1]),
            (0, [-1], batch.digests),
            (0, [CLUSTER + 1], batch.digests),
        ):
            with pytest.raises(FormatError):
                disk.add(first, lengths, digests, payload)


def test_unknown_disks(points: Points) -> None:
    folder = make_point(points, mixed(SIZE, 8))
    with pytest.raises(PointNotFound, match="no disk 2001"):
        PointDisk(folder, 2001)
    with pytest.raises(PointNotFound):
        PointDisk(folder / "other", 2000)


def test_receiver_checks_digests_too(tmp_path: Path) -> None:
    batch = Packer().pack(0, memoryview(b"a" * CLUSTER))
    target = SparseFile(tmp_path / "out", CLUSTER)
    with pytest.raises(Damaged, match="offset 0"):
        target.put(0, batch.lengths, bytes(32), memoryview(b"".join(batch.parts)))
    with pytest.raises(FormatError):
        target.put(1, batch.lengths, batch.digests, memoryview(b"".join(batch.parts)))
    target.discard()
    assert list(tmp_path.iterdir()) == []


def test_digest_table_of_a_huge_disk_is_small(tmp_path: Path) -> None:
    table = DigestTable(1 << 40)
    table.put(12_345_678, b"\7" * 64)
    table.write(tmp_path / "digests")
    status = (tmp_path / "digests").stat()
    assert status.st_size == (1 << 24) * 32 and status.st_blocks * 512 < 1 << 20
    assert table.get(12_345_677, 3) == bytes(32) + b"\7" * 64
