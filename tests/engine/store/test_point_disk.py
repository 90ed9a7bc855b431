# SPDX-License-Identifier: MIT
"""What leaves the repository as batches: as it is stored, checked, and refused exactly when a restore of the file is."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.store.clusters import Unpacker
from engine.store.errors import Damaged, FormatError
from engine.store.point_disk import PointDisk
from engine.store.points import Points
from engine.store.sparse import SparseFile
from tests.engine.store.disks import CLUSTER, content_of, make_chain, make_point, point_id, versions
from tests.engine.store.test_qcow2 import mixed

FILES = ("disk-2000.qcow2", "disk-2000.digests", "disk-2000.blocks")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """A repository with a full and two incrementals, and their contents."""
    root = tmp_path_factory.mktemp("chain") / "repository"
    root.mkdir()
    contents = versions(mixed(2 << 20, 3), 3, 5)
    make_chain(Points(root), contents)
    return root, contents


def received(folder: Path, to: Path) -> bytes:
    """The disk as the other side of a data link receives and checks it."""
    with PointDisk(folder, 2000) as disk:
        target = SparseFile(to, disk.size)
        try:
            for batch in disk.batches():
                target.put(batch.first, batch.lengths, batch.digests, memoryview(b"".join(batch.parts)))
            target.finish()
        finally:
            target.discard()
    return to.read_bytes()


def test_batches_are_the_content(chain: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    root, contents = chain
    for number, content in enumerate(contents):
        assert received(root / "demo" / "vm1" / point_id(number), tmp_path / "out") == content


def test_what_the_files_digests_vouch_for_is_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_point(Points(tmp_path), b"text " * CLUSTER)
    expanded: list[int] = []
    expand = Unpacker.expand

    def counted(self: Unpacker, frame: bytes | memoryview) -> bytes:
        expanded.append(len(frame))
        return expand(self, frame)

    monkeypatch.setattr(Unpacker, "expand", counted)
    with PointDisk(folder, 2000) as disk:
        assert sum(batch.data for batch in disk.batches()) == 5
    assert not expanded
    (folder / "disk-2000.blocks").write_bytes(b"nothing")
    with PointDisk(folder, 2000) as disk:
        assert sum(batch.data for batch in disk.batches()) == 5
    assert len(expanded) == 5


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """One bit of the file, turned."""
    before = path.read_bytes()
    data = bytearray(before)
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(point=st.integers(0, 2), file=st.sampled_from(FILES), bit=st.integers(0, 1 << 40), wanted=st.integers(0, 2))
def test_a_flipped_bit_is_refused_or_does_not_matter(
    chain: tuple[Path, list[bytes]], tmp_path: Path, point: int, file: str, bit: int, wanted: int
) -> None:
    """Neither way of restoring gives other bytes, and both agree on whether the point can be restored."""
    root, contents = chain
    folder = root / "demo" / "vm1"
    with flipped(folder / point_id(point) / file, bit):
        outcomes: list[bytes | None] = []
        for restore in (content_of, received):
            try:
                outcomes.append(restore(folder / point_id(wanted), tmp_path / "out"))
            except (Damaged, FormatError) as exc:
                assert isinstance(exc, Damaged), exc
                assert "intact" in exc.message
                outcomes.append(None)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] in (None, contents[wanted])


def test_damage_names_its_offset(tmp_path: Path) -> None:
    content = random.Random(8).randbytes(20 * CLUSTER)
    folder = make_point(Points(tmp_path), content)
    data = bytearray((folder / "disk-2000.qcow2").read_bytes())
    at = data.index(content[17 * CLUSTER : 17 * CLUSTER + 64])
    data[at + 5] ^= 4
    (folder / "disk-2000.qcow2").write_bytes(data)
    with pytest.raises(Damaged, match=f"refused at offset {17 * CLUSTER}.*19 of 20 blocks of 64 KiB are intact"):
        received(folder, tmp_path / "out")
