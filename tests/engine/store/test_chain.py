# SPDX-License-Identifier: MIT
"""Chains of a full and incrementals: against QEMU's own tools, resized disks, parents that are refused, locks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.store import checks, locks
from engine.store.errors import ChainLocked, Damaged, FormatError, ParentUnusable, Unfinished
from engine.store.manifest import Manifest
from engine.store.point_disk import PointDisk
from engine.store.points import Points
from engine.store.target import TargetDisk
from tests.engine.store.disks import (
    CLUSTER,
    changed,
    content_of,
    document,
    make_chain,
    make_incremental,
    make_point,
    point_id,
    send,
    versions,
)
from tests.engine.store.test_qcow2 import mixed, qemu_agrees


@pytest.fixture
def points(tmp_path: Path) -> Points:
    (tmp_path / "repository").mkdir()
    return Points(tmp_path / "repository")


def test_every_point_of_a_chain_is_its_content(points: Points, tmp_path: Path) -> None:
    contents = versions(mixed(6 << 20, 1), 5, 7)
    for folder, content in zip(made := make_chain(points, contents), contents, strict=True):
        qemu_agrees(folder / "disk-2000.qcow2", content)
        assert content_of(folder, tmp_path / "out") == content
    found = [Manifest.load(folder) for folder in made]
    assert [m.kind for m in found] == ["full"] + ["incremental"] * 4
    assert [m.parent for m in found] == [None, *(point_id(n) for n in range(4))]
    for number, manifest in enumerate(found[1:], 1):
        (entry,) = manifest.disks
        assert entry.parent_root == found[number - 1].disks[0].root
        assert entry.changed == len(changed(contents[number - 1], contents[number]))
        assert entry.stored < entry.changed * CLUSTER + 5 * CLUSTER, "what did not change is not stored again"


def test_zeros_that_are_sent_hide_the_parent(points: Points, tmp_path: Path) -> None:
    old = random.Random(1).randbytes(8 * CLUSTER)
    new = old[: 2 * CLUSTER] + bytes(3 * CLUSTER) + old[5 * CLUSTER :]
    folder = make_chain(points, [old, new])[1]
    assert content_of(folder, tmp_path / "out") == new
    qemu_agrees(folder / "disk-2000.qcow2", new)
    assert Manifest.load(folder).disks[0].allocated == 5


def test_nothing_changed(points: Points, tmp_path: Path) -> None:
    content = mixed(3 << 20, 2)
    folder = make_chain(points, [content, content])[1]
    assert content_of(folder, tmp_path / "out") == content
    assert (folder / "disk-2000.qcow2").stat().st_size == 4 * CLUSTER
    qemu_agrees(folder / "disk-2000.qcow2", content)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 40 * 128), min_size=2, max_size=5),
    seed=st.integers(0, 1 << 32),
    fuller=st.booleans(),
)
def test_resized_disks(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int, fuller: bool) -> None:
    """Grown, shrunk and grown again, by any number of sectors; what a shrunk disk lost does not come back."""
    folder = tmp_path_factory.mktemp("resized")
    points = Points(folder)
    rng = random.Random(seed)
    contents: list[bytes] = []
    for sectors in sizes:
        base = contents[-1] if contents else b""
        content = bytearray(base[: sectors * 512].ljust(sectors * 512, b"\0"))
        if fuller or not contents:
            at = rng.randrange(len(content))
            content[at : at + 90_000] = rng.randbytes(min(90_000, len(content) - at))
        contents.append(bytes(content))
    # A source that reports what was written after a shrink need not name the cluster that was cut.
    for made, content in zip(make_chain(points, contents), contents, strict=True):
        assert content_of(made, folder / "out") == content
        qemu_agrees(made / "disk-2000.qcow2", content)


def test_a_cut_cluster_that_is_not_sent(points: Points, tmp_path: Path) -> None:
    old = random.Random(4).randbytes(4 * CLUSTER)
    first = make_point(points, old, point=point_id(0))
    size = 2 * CLUSTER + 1024
    folder = points.begin("demo", "vm1", point_id(1), kind="incremental", parent=point_id(0))
    with TargetDisk(folder, "disk-2000.qcow2", size, parent=PointDisk(first, 2000)) as disk:
        stored = disk.commit(root=TargetDisk(tmp_path, "x.qcow2", size).digests.root())
    second = points.commit("demo", "vm1", point_id(1), document(point_id(1), stored, parent=point_id(0)))
    assert content_of(second, tmp_path / "out") == old[:size]
    grown = old[:size].ljust(5 * CLUSTER, b"\0")
    third = make_incremental(points, old[:size], grown, point=point_id(2), parent=point_id(1))
    assert content_of(third, tmp_path / "out") == grown
    qemu_agrees(third / "disk-2000.qcow2", grown)


def test_parents_that_are_refused(points: Points) -> None:
    contents = versions(mixed(2 << 20, 1), 3, 7)
    made = make_chain(points, contents)

    def begin(parent: str) -> None:
        points.begin("demo", "vm1", point_id(9), kind="incremental", parent=parent)

    with pytest.raises(ParentUnusable, match="not the newest of its chain"):
        begin(point_id(1))
    with pytest.raises(ParentUnusable, match="not found"):
        begin(point_id(7))
    for name in ("../../x", f".partial-{point_id(5)}", ""):
        with pytest.raises((ParentUnusable, InputError)):
            begin(name)
    half = points.begin("demo", "vm1", point_id(5))
    assert half.is_dir()
    with pytest.raises(ChainLocked, match="adds or merges"):
        begin(point_id(5))
    points.abort("demo", "vm1", point_id(5))
    for damage in (
        made[2] / "manifest.json",
        made[2] / "disk-2000.digests",
        made[1] / "disk-2000.qcow2",
        made[0] / "disk-2000.qcow2",
        made[0] / "manifest.json",
    ):
        kept = damage.read_bytes()
        damage.write_bytes(kept[:-7])
        with pytest.raises(ParentUnusable, match="damaged"):
            begin(point_id(2))
        damage.write_bytes(kept)
    begin(point_id(2))


def test_kinds_that_do_not_fit(points: Points) -> None:
    make_point(points, mixed(1 << 20, 1), point=point_id(0))
    for kind, parent in (("full", point_id(0)), ("incremental", None), ("synthetic-full", None), ("x", None)):
        with pytest.raises(InputError):
            points.begin("demo", "vm1", point_id(1), kind=kind, parent=parent)  # type: ignore[arg-type]
    with pytest.raises(ParentUnusable):
        points.begin("demo", "other", point_id(1), kind="incremental", parent=point_id(0))


def test_an_incremental_must_stand_on_what_it_was_begun_on(points: Points) -> None:
    content = mixed(2 << 20, 1)
    first = make_point(points, content, point=point_id(0))
    folder = points.begin("demo", "vm1", point_id(1))
    with TargetDisk(folder, "disk-2000.qcow2", len(content), parent=PointDisk(first, 2000)) as disk:
        stored = disk.commit()
    alone = document(point_id(1), stored)
    alone["disks"][0]["parent_root"] = None
    with pytest.raises(Unfinished, match="not the restore point below it"):
        points.commit("demo", "vm1", point_id(1), alone)
    named = document(point_id(1), stored, parent=point_id(0))
    with pytest.raises(Unfinished, match="not begun on"):
        points.commit("demo", "vm1", point_id(1), named)


def test_a_disk_may_be_whole_in_an_incremental(points: Points, tmp_path: Path) -> None:
    old, new = mixed(2 << 20, 1), mixed(2 << 20, 2)
    make_point(points, old, point=point_id(0))
    folder = points.begin("demo", "vm1", point_id(1), kind="incremental", parent=point_id(0))
    with TargetDisk(folder, "disk-2000.qcow2", len(new)) as disk:
        send(disk, new, changed(b"", new))
        stored = disk.commit()
    made = points.commit("demo", "vm1", point_id(1), document(point_id(1), stored, parent=point_id(0)))
    assert Manifest.load(made).disks[0].parent_root is None and Manifest.load(made).kind == "incremental"
    assert content_of(made, tmp_path / "out") == new


def test_a_parent_elsewhere(points: Points, tmp_path: Path) -> None:
    first = make_point(points, mixed(1 << 20, 1))
    (tmp_path / "far" / "away").mkdir(parents=True)
    with PointDisk(first, 2000) as parent, pytest.raises(InputError, match="beside"):
        TargetDisk(tmp_path / "far" / "away", "disk-2000.qcow2", 1 << 20, parent=parent)


def test_two_incrementals_at_a_time(points: Points) -> None:
    make_point(points, mixed(1 << 20, 1), point=point_id(0))
    points.begin("demo", "vm1", point_id(1), kind="incremental", parent=point_id(0))
    for other in (points, Points(points.repository)):
        with pytest.raises(ChainLocked, match="another session"):
            other.begin("demo", "vm1", point_id(2), kind="incremental", parent=point_id(0))
    points.abort("demo", "vm1", point_id(1))
    points.begin("demo", "vm1", point_id(2), kind="incremental", parent=point_id(0))


def test_locks_are_given_back(points: Points) -> None:
    contents = versions(mixed(1 << 20, 1), 2, 3)
    made = make_chain(points, contents)
    folder = made[0].parent
    with PointDisk(made[1], 2000), pytest.raises(ChainLocked, match="in use"):
        locks.chain(folder, exclusive=True)
    with locks.chain(folder, exclusive=True), locks.append(folder, exclusive=True):
        with pytest.raises(ChainLocked, match="being changed"):
            PointDisk(made[1], 2000, wait=0)
        with pytest.raises(ChainLocked):
            points.begin("demo", "vm1", point_id(5))
    with pytest.raises(Damaged):
        (made[1] / "disk-2000.digests").write_bytes(b"")
        PointDisk(made[1], 2000)
    locks.chain(folder, exclusive=True).close()


def test_a_chain_without_end(points: Points) -> None:
    made = make_chain(points, versions(mixed(1 << 20, 1), 2, 3))
    first = Manifest.load(made[0])
    loop = Manifest.parse(first.model_dump(by_alias=True) | {"kind": "incremental", "parent": point_id(1)})
    loop.write(made[0])
    with pytest.raises(Damaged, match="does not end"):
        PointDisk(made[1], 2000)
    with pytest.raises(ParentUnusable):
        checks.require_usable_parent(made[1])


def test_a_missing_link(points: Points) -> None:
    made = make_chain(points, versions(mixed(1 << 20, 1), 3, 3))
    made[1].rename(made[1].with_name("elsewhere"))
    with pytest.raises(Damaged, match=f"{point_id(1)} below it is missing"):
        PointDisk(made[2], 2000)


def test_manifests(points: Points) -> None:
    made = make_chain(points, versions(mixed(1 << 20, 1), 2, 3))
    manifest = Manifest.load(made[1])
    fields = manifest.model_dump(by_alias=True)
    assert Manifest.parse(fields) == manifest
    for wrong in ({"kind": "full"}, {"parent": None}, {"parent": manifest.point}, {"kind": "x"}):
        with pytest.raises(FormatError):
            Manifest.parse(fields | wrong)
    old = {k: v for k, v in fields.items() if k != "parent"} | {"schema": "vadplab.point/1", "kind": "full"}
    keep = ("key", "label", "path", "capacity", "file", "stored", "digests", "root")
    old["disks"] = [{k: disk[k] for k in keep} for disk in fields["disks"]]
    first = Manifest.parse(old)
    (made[1] / "manifest.json").write_bytes(first.encode())
    assert Manifest.load(made[1]) == first


def test_change_ids_travel(points: Points) -> None:
    content = mixed(1 << 20, 1)
    folder = points.begin("demo", "vm1", point_id(0))
    with TargetDisk(folder, "disk-2000.qcow2", len(content)) as disk:
        send(disk, content, range(16))
        fields = document(point_id(0), disk.commit())
    fields["disks"][0]["change_id"] = "52 de c0 d9 3e 4c 99 3a-9f 7f d2 58 a4 6d c2 11/4"
    points.commit("demo", "vm1", point_id(0), fields)
    newest = points.newest("demo", "vm1")
    assert newest is not None and newest.summary()["disks"][0]["change_id"].endswith("/4")
    assert points.newest("demo", "nobody") is None
