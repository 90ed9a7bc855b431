# SPDX-License-Identifier: MIT
"""What a policy lets go, in tables; and that applying it merges first and removes last."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InputError
from engine.store import health, merge, retention
from engine.store.errors import ChainLocked, Damaged, PointNotFound
from engine.store.manifest import Manifest
from engine.store.point_disk import PointDisk
from engine.store.points import Points
from engine.store.retention import Kept, Policy, plan
from tests.engine.store.disks import START, content_of, make_chain, make_point, point_id, versions
from tests.engine.store.test_qcow2 import mixed, qemu_agrees

NOW = START + timedelta(hours=100)


def kept(shape: str) -> list[Kept]:
    """`F` a full, `i` an incremental on the point before it; one a day, the last one now."""
    made = []
    for number, kind in enumerate(shape):
        created = NOW - timedelta(days=len(shape) - 1 - number)
        made.append(Kept(f"{number}", created, f"{number - 1}" if kind == "i" else None))
    return made


@pytest.mark.parametrize(
    ("shape", "count", "days", "merges", "removals"),
    [
        ("", 3, None, "", ""),
        ("F", 1, 1, "", ""),
        ("Fii", 3, None, "", ""),
        ("Fiii", 3, None, "1", "0"),
        ("Fiiii", 3, None, "2", "10"),
        ("Fiiii", 1, None, "4", "3210"),
        ("FiFii", 3, None, "", "10"),
        ("FiFii", 2, None, "3", "210"),
        ("FFF", 2, None, "", "0"),
        ("FiiF", 1, None, "", "210"),
        ("Fiii", None, 2, "1", "0"),
        ("Fiii", None, 1, "2", "10"),
        ("Fiii", None, 99, "", ""),
        ("Fiii", 3, 1, "1", "0"),
        ("Fiii", 1, 2, "1", "0"),
        ("FiFiFi", 3, 4, "", "0"),
    ],
)
def test_table(shape: str, count: int | None, days: int | None, merges: str, removals: str) -> None:
    if (
        shape == "FiFiFi"
    ):  # both rules: 4 days keep five points, so only the oldest goes, and what stands on it is merged
        merges = "1"
    found = plan(list(reversed(kept(shape))), Policy(count, days), NOW)
    assert ("".join(found.merges), "".join(found.removals)) == (merges, removals)


def test_the_newest_stays_however_old() -> None:
    old = [Kept("a", NOW - timedelta(days=900)), Kept("b", NOW - timedelta(days=800), "a")]
    assert plan(old, Policy(days=7), NOW).to_dict() == {"merges": ["b"], "removals": ["a"]}


@given(
    parents=st.lists(st.none() | st.integers(0, 30), max_size=12),
    hours=st.lists(st.integers(0, 400), min_size=12, max_size=12),
    count=st.none() | st.integers(1, 5),
    days=st.integers(1, 9),
)
def test_any_history(parents: list[int | None], hours: list[int], count: int | None, days: int) -> None:
    """Clocks may go back and chains may fork: what stays never stands on what goes, removals go from the top down."""
    points = []
    for number, parent in enumerate(parents):
        below = None if parent is None or not number else str(parent % number)
        points.append(Kept(str(number), NOW - timedelta(hours=hours[number]), below))
    found = plan(points, Policy(count, days), NOW)
    gone = set(found.removals)
    assert len(gone) == len(found.removals) and not gone & set(found.merges)
    for point in points:
        if point.point not in gone and point.parent in gone:
            assert point.point in found.merges
    for at, name in enumerate(found.removals):
        assert not any(p.parent == name and p.point not in found.removals[:at] for p in points if p.point in gone)
    if points:
        assert max(points, key=lambda p: (p.created, p.point)).point not in gone
        assert len(points) - len(gone) >= min(len(points), count or 1)


@pytest.mark.parametrize(("count", "days"), [(None, None), (0, None), (None, 0), (-1, 5)])
def test_policies_that_keep_nothing(count: int | None, days: int | None) -> None:
    with pytest.raises(InputError):
        Policy(count, days)


@pytest.fixture
def points(tmp_path: Path) -> Points:
    (tmp_path / "repository").mkdir()
    return Points(tmp_path / "repository")


def state(points: Points, tmp_path: Path) -> dict[str, bytes]:
    """Content of every visible point; each file is what QEMU and verify accept, too."""
    found = {}
    for point in points.list():
        found[point.folder.name] = content_of(point.folder, tmp_path / "out")
        qemu_agrees(point.folder / "disk-2000.qcow2", found[point.folder.name])
        assert health.of_vm(point.folder.parent, deep=True).intact
    return found


def test_the_oldest_is_merged(points: Points, tmp_path: Path) -> None:
    contents = versions(mixed(4 << 20, 3), 6, 1)
    make_chain(points, contents)
    done = retention.apply(points, "demo", "vm1", Policy(count=3), NOW)
    assert done.merges == (point_id(3),) and done.removals == (point_id(2), point_id(1), point_id(0))
    assert state(points, tmp_path) == {point_id(n): contents[n] for n in (3, 4, 5)}
    found = [p.manifest for p in points.list()]
    assert [(m.kind, m.parent) for m in found if m] == [
        ("synthetic-full", None), ("incremental", point_id(3)), ("incremental", point_id(4))
    ]  # fmt: skip
    assert sorted(p.name for p in (points.repository / "demo" / "vm1").iterdir()) == [point_id(n) for n in (3, 4, 5)]
    assert not retention.apply(points, "demo", "vm1", Policy(count=3), NOW)


def test_a_synthetic_full_leaves_the_older_points(points: Points, tmp_path: Path) -> None:
    contents = versions(mixed(3 << 20, 3), 4, 1)
    made = make_chain(points, contents)
    before = {n: (made[n] / "disk-2000.qcow2").read_bytes() for n in (0, 1, 3)}
    merge.synthetic_full(points, "demo", "vm1", point_id(2))
    assert state(points, tmp_path) == {point_id(n): contents[n] for n in range(4)}
    assert {n: (made[n] / "disk-2000.qcow2").read_bytes() for n in (0, 1, 3)} == before
    assert Manifest.load(made[2]).kind == "synthetic-full"
    kept = (made[2] / "disk-2000.qcow2").stat().st_ino
    merge.synthetic_full(points, "demo", "vm1", point_id(2))
    assert (made[2] / "disk-2000.qcow2").stat().st_ino == kept, "a full is left as it is"


def test_active_full_ends_a_chain(points: Points, tmp_path: Path) -> None:
    contents = versions(mixed(2 << 20, 3), 3, 1)
    make_chain(points, contents)
    make_point(points, contents[2], point=point_id(7))
    retention.apply(points, "demo", "vm1", Policy(count=1), NOW)
    assert state(points, tmp_path) == {point_id(7): contents[2]}


def test_one_point_in_the_middle(points: Points, tmp_path: Path) -> None:
    contents = versions(mixed(2 << 20, 3), 4, 1)
    make_chain(points, contents)
    merge.delete(points, "demo", "vm1", point_id(1))
    assert state(points, tmp_path) == {point_id(n): contents[n] for n in (0, 2, 3)}
    with pytest.raises(PointNotFound):
        merge.delete(points, "demo", "vm1", point_id(1))
    with pytest.raises(PointNotFound):
        merge.synthetic_full(points, "demo", "nobody", point_id(1))


def test_a_chain_in_use_is_not_merged(points: Points, tmp_path: Path) -> None:
    contents = versions(mixed(1 << 20, 3), 4, 1)
    made = make_chain(points, contents)
    with PointDisk(made[0], 2000), pytest.raises(ChainLocked):
        retention.apply(points, "demo", "vm1", Policy(count=1), NOW, wait=0.1)
    points.begin("demo", "vm1", point_id(9), kind="incremental", parent=point_id(3))
    with pytest.raises(ChainLocked):
        retention.apply(points, "demo", "vm1", Policy(count=1), NOW, wait=0.1)
    points.close()
    assert state(points, tmp_path) == {point_id(n): contents[n] for n in range(4)}
    assert retention.apply(points, "demo", "vm1", Policy(count=1), NOW, wait=0.1)


def test_damaged_data_is_not_merged(points: Points, tmp_path: Path) -> None:
    contents = versions(mixed(2 << 20, 3), 3, 1)
    made = make_chain(points, contents)
    path = made[0] / "disk-2000.qcow2"
    good = path.read_bytes()
    path.write_bytes(good[: 64 << 10] + bytes(256 << 10) + good[320 << 10 :])
    with pytest.raises(Damaged):
        retention.apply(points, "demo", "vm1", Policy(count=1), NOW)
    path.write_bytes(good)
    assert state(points, tmp_path) == {point_id(n): contents[n] for n in range(3)}
    (made[1] / "manifest.json").write_text("{}")
    assert not retention.apply(points, "demo", "vm1", Policy(count=1), NOW), "nobody knows what the damaged point needs"
