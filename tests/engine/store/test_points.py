# SPDX-License-Identifier: MIT
"""Begin, commit, abort, list; and the manifest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import InputError
from engine.store.errors import FormatError, PointBusy, PointNotFound, StoreError, Unfinished
from engine.store.manifest import Manifest
from engine.store.points import Points, folder_name, new_point_id
from tests.engine.store.disks import POINT, fields, make_point, store
from tests.engine.store.test_qcow2 import mixed

CONTENT = mixed(5 << 20, 2)
OTHER = "20261125T081500Z-aaaa"


@pytest.fixture
def points(tmp_path: Path) -> Points:
    (tmp_path / "repository").mkdir()
    return Points(tmp_path / "repository")


def document(folder: Path) -> dict[str, Any]:
    return fields(POINT, store(folder, CONTENT).to_dict(), job="demo", vm="vm1")


def test_visible_only_after_commit(points: Points) -> None:
    folder = points.begin("demo", "vm1", POINT)
    assert folder.name == f".partial-{POINT}"
    found = document(folder)
    assert points.list() == []
    final = points.commit("demo", "vm1", POINT, found)
    assert final == points.repository / "demo" / "vm1" / POINT
    assert not folder.exists()
    summary = points.list()[0].summary()
    assert summary["vm"] == "vm1" and summary["size"] == len(CONTENT) and summary["error"] is None
    names = ["disk-2000.blocks", "disk-2000.digests", "disk-2000.qcow2", "manifest.json"]
    assert sorted(path.name for path in final.iterdir()) == names
    assert json.loads((final / "manifest.json").read_text())["schema"] == "vadplab.point/2"


def test_abort_removes_everything(points: Points) -> None:
    folder = points.begin("demo", "vm1", POINT)
    document(folder)
    points.abort("demo", "vm1", POINT)
    assert not folder.exists()
    points.abort("demo", "vm1", POINT)
    folder = points.begin("demo", "vm1", POINT)
    points.close()
    assert not folder.exists()


def test_commit_refuses_what_is_not_complete(points: Points) -> None:
    with pytest.raises(Unfinished, match="has not begun"):
        points.commit("demo", "vm1", POINT, {})
    folder = points.begin("demo", "vm1", POINT)
    good = document(folder)
    disk = good["disks"][0]
    for change in (
        {"root": "0" * 64},
        {"stored": disk["stored"] + 1},
        {"capacity": disk["capacity"] + 512},
        {"file": "disk-2001.qcow2"},
        {"digests": "other.digests"},
    ):
        with pytest.raises(Unfinished):
            points.commit("demo", "vm1", POINT, {**good, "disks": [{**disk, **change}]})
    for wrong in ({**good, "point": OTHER}, {**good, "job": "other"}):
        with pytest.raises(Unfinished, match="names another point"):
            points.commit("demo", "vm1", POINT, wrong)
    for bad in ({**good, "disks": []}, {**good, "schema": "x"}, {**good, "extra": 1}, {**good, "disks": [disk, disk]}):
        with pytest.raises(FormatError, match="manifest"):
            points.commit("demo", "vm1", POINT, bad)
    assert points.list() == []
    points.commit("demo", "vm1", POINT, good)


def test_a_disk_without_digests_was_never_verified(points: Points) -> None:
    folder = points.begin("demo", "vm1", POINT)
    good = document(folder)
    (folder / "disk-2000.digests").unlink()
    with pytest.raises(Unfinished, match=r"disk-2000\.digests"):
        points.commit("demo", "vm1", POINT, good)


def test_the_same_point_twice(points: Points) -> None:
    points.begin("demo", "vm1", POINT)
    with pytest.raises(PointBusy):
        points.begin("demo", "vm1", POINT)
    with pytest.raises(PointBusy):
        Points(points.repository).begin("demo", "vm1", POINT)
    points.abort("demo", "vm1", POINT)
    make_point(points, CONTENT)
    with pytest.raises(PointBusy):
        points.begin("demo", "vm1", POINT)


def test_leftovers_of_the_living_stay_and_of_the_dead_go(points: Points) -> None:
    script = (
        "import sys,pathlib; from engine.store.points import Points;"
        f"print(Points(pathlib.Path(sys.argv[1])).begin('demo','vm1','{OTHER}'), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(points.repository)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        assert left.is_dir()
        points.begin("demo", "vm1", POINT)
        points.abort("demo", "vm1", POINT)
        assert left.is_dir(), "its session lives"
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
    assert left.is_dir()
    points.begin("demo", "vm1", POINT)
    assert not left.exists()


def test_close_removes_what_was_not_committed(points: Points) -> None:
    folder = points.begin("demo", "vm1", POINT)
    points.close()
    assert not folder.exists()


def test_find(points: Points) -> None:
    make_point(points, CONTENT)
    make_point(points, CONTENT, vm="vm 2/ä", point=POINT)
    make_point(points, CONTENT, point=OTHER)
    assert points.find(OTHER).folder.name == OTHER
    assert points.find("20261125T08").folder.name == OTHER
    assert points.find(POINT, vm="vm1").folder.parent.name == "vm1"
    for point, vm in ((POINT, None), ("20261125T09", None), ("", None), (OTHER, "vm 2/ä")):
        with pytest.raises(PointNotFound):
            points.find(point, vm=vm)


def test_a_damaged_manifest_is_listed_with_its_error(points: Points) -> None:
    folder = make_point(points, CONTENT)
    (folder / "manifest.json").write_text("{}")
    (found,) = points.list()
    assert found.manifest is None and "manifest" in str(found.error)
    assert found.summary()["error"] == found.error


def test_names(points: Points) -> None:
    for name in ("..", "a/b", ".partial-x", "ä ö", "x~y"):
        encoded = folder_name(name)
        assert "/" not in encoded and not encoded.startswith(".") and encoded.isascii()
    for bad in ("", "x" * 81):
        with pytest.raises(InputError):
            folder_name(bad)
    for bad in ("x", "../../etc", "20261125T071500Z", "20261125T071500Z-3f2a\n"):
        with pytest.raises(InputError):
            points.begin("demo", "vm1", bad)


def test_new_ids_are_ids(points: Points) -> None:
    points.begin("demo", "vm1", new_point_id())


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        Points(tmp_path / "missing").begin("demo", "vm1", POINT)


def test_free_space(points: Points) -> None:
    assert points.free_bytes() > 0


def test_manifest_needs_a_time_zone() -> None:
    stored = {"file": "a.qcow2", "digests": "a.digests", "size": 512, "stored": 1, "root": "0" * 64}
    good = fields(POINT, stored, job="demo", vm="vm1")
    assert Manifest.parse(good).disk(2000) is not None
    with pytest.raises(FormatError, match="time zone"):
        Manifest.parse({**good, "created": "2026-11-25T07:15:00"})
