# SPDX-License-Identifier: MIT
"""One flipped bit in any file is found, named with VM, disk and offset; and what is intact is known exactly."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import VadplabError
from engine.store import health
from engine.store.clusters import CLUSTER_BITS
from engine.store.errors import Damaged, RepositoryGone
from engine.store.manifest import Manifest
from engine.store.point_disk import PointDisk
from engine.store.points import Points
from tests.engine.store.disks import content_of, make_chain, point_id, versions
from tests.engine.store.test_qcow2 import mixed
from tests.engine.store.test_verify import flip, places

CLUSTER = 1 << CLUSTER_BITS
FILES = ("disk-2000.qcow2", "disk-2000.digests", "disk-2000.blocks", "manifest.json")
CONTENTS = versions(mixed(3 << 20, 9), 3, 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A chain of three; every test leaves it as it was."""
    return make_chain(Points(tmp_path_factory.mktemp("repository")), CONTENTS)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(point=st.integers(0, 2), file=st.sampled_from(FILES), where=st.floats(0, 1), bit=st.integers(0, 7))
def test_any_flipped_bit(made: list[Path], point: int, file: str, where: float, bit: int) -> None:
    path = made[point] / file
    size = path.stat().st_size
    offset = min(int(where * size), size - 1)
    flip(path, offset, 1 << bit)
    try:
        found = health.verify(made[0].parent)
        assert not found.intact
        assert {(d.point, d.file) for d in found.damage} == {(point_id(point), file)}
        for damage in found.damage:
            assert damage.vm == "vm1" and damage.disk == (None if file == "manifest.json" else 2000)
            assert damage.offset <= offset < damage.offset + damage.length <= size
            assert damage.length <= CLUSTER
            assert f"vm1, restore point {point_id(point)}" in damage.describe() and file in damage.describe()
        for number, (folder, state) in enumerate(zip(made, found.points, strict=True)):
            assert state.intact == restores(folder, number), "intact means exactly that it can be restored"
    finally:
        flip(path, offset, 1 << bit)


def restores(folder: Path, number: int) -> bool:
    """Whether the point can be read out whole; wrong bytes are never given out."""
    out = folder.parents[2] / "out"
    try:
        assert content_of(folder, out) == CONTENTS[number]
    except VadplabError:
        return False
    return True


def test_nothing_is_wrong_at_first(made: list[Path]) -> None:
    for deep in (False, True):
        assert health.verify(made[0].parent, deep=deep).intact


@pytest.mark.parametrize("file", ["disk-2000.qcow2", "disk-2000.digests", "disk-2000.blocks"])
@pytest.mark.parametrize("change", ["cut", "grown", "gone", "empty"])
def test_other_lengths(made: list[Path], file: str, change: str) -> None:
    path = made[1] / file
    kept = path.read_bytes()
    try:
        if change == "gone":
            path.unlink()
        else:
            path.write_bytes({"cut": kept[:-100], "grown": kept + b"\0", "empty": b""}[change])
        found = health.verify(made[0].parent)
        assert not found.intact and {d.file for d in found.damage} >= {file}
        assert found.points[0].intact
    finally:
        path.write_bytes(kept)


def test_what_is_intact(made: list[Path], tmp_path: Path) -> None:
    """Damage of the full that the newest point overwrote does not touch that one."""
    stored = places(made[0] / "disk-2000.qcow2")
    over = [c for c in range(48) if CONTENTS[1][c * CLUSTER :][:CLUSTER] != CONTENTS[2][c * CLUSTER :][:CLUSTER]]
    cluster = next(c for c in over if c in stored)
    offset = stored[cluster][0] + 5
    flip(made[0] / "disk-2000.qcow2", offset)
    try:
        found = health.verify(made[0].parent)
        assert found.points[2].intact and not found.points[0].intact
        assert cluster * CLUSTER in found.damage[0].disk_offsets
        assert content_of(made[2], tmp_path / "out") == CONTENTS[2]
        with pytest.raises(Damaged) as caught:
            content_of(made[0], tmp_path / "out")
        text = caught.value.message
        assert f"refused at offset {cluster * CLUSTER}" in text
        assert "; other intact points of vm1 in this job: " in text and text.endswith(point_id(2))
        assert "disk 2000: disk-2000.qcow2 at offset" in text
        assert found.points[0].to_dict()["broken_disks"][0]["lost"]
    finally:
        flip(made[0] / "disk-2000.qcow2", offset)


def test_only_one_point_and_what_it_stands_on(made: list[Path]) -> None:
    assert [p.point for p in health.verify(made[0].parent, only=point_id(1)).points] == [point_id(0), point_id(1)]


def test_files_that_do_not_belong(made: list[Path]) -> None:
    (made[1] / "notes.txt").write_text("mine")
    try:
        found = health.verify(made[0].parent)
        assert [d.file for d in found.damage] == ["notes.txt"] and all(p.intact for p in found.points)
    finally:
        (made[1] / "notes.txt").unlink()


def test_a_disk_that_cannot_be_opened_is_named(made: list[Path]) -> None:
    flip(made[0] / "disk-2000.qcow2", 1)
    try:
        with pytest.raises(Damaged, match=r"disk-2000\.qcow2 at offset 0\.\.65536"):
            PointDisk(made[2], 2000)
    finally:
        flip(made[0] / "disk-2000.qcow2", 1)


def test_points_of_the_first_schema(made: list[Path]) -> None:
    kept = (made[0] / "manifest.json").read_bytes()
    fields = Manifest.load(made[0]).model_dump(by_alias=True) | {"schema": "vadplab.point/1"}
    fields["disks"][0] |= {"blocks": None, "blocks_root": None, "changed": None, "allocated": None}
    sidecar = (made[0] / "disk-2000.blocks").read_bytes()
    try:
        (made[0] / "manifest.json").write_bytes(Manifest.parse(fields).encode())
        (made[0] / "disk-2000.blocks").unlink()
        assert health.verify(made[0].parent).intact
        offset = random.Random(2).choice(list(places(made[0] / "disk-2000.qcow2").values()))[0] + 5
        flip(made[0] / "disk-2000.qcow2", offset)
        found = health.verify(made[0].parent)
        flip(made[0] / "disk-2000.qcow2", offset)
        assert not found.points[0].intact and found.damage[0].disk_offsets
    finally:
        (made[0] / "manifest.json").write_bytes(kept)
        (made[0] / "disk-2000.blocks").write_bytes(sidecar)


def test_a_repository(made: list[Path], tmp_path: Path) -> None:
    (found,) = health.verify_repository(made[0].parents[2])
    assert len(found.points) == 3
    with pytest.raises(RepositoryGone):
        health.verify_repository(tmp_path / "gone")
