# SPDX-License-Identifier: MIT
"""Points that were copied from elsewhere become visible whole and verified; what is foreign is refused with its reason."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from engine.errors import VadplabError
from engine.store.errors import Damaged, ForeignFile, FormatError, PointExists, PointNotFound, StoreError
from engine.store.importing import import_point, import_points
from engine.store.points import Points
from tests.engine.store.disks import content_of, make_chain, point_id, versions
from tests.engine.store.test_qcow2 import mixed, qemu_agrees
from tests.engine.store.test_verify import flip

CONTENTS = versions(mixed(3 << 20, 1), 3, 7)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return make_chain(Points(tmp_path / "source"), CONTENTS, vm="vm ä")[0].parent


@pytest.fixture
def points(tmp_path: Path) -> Points:
    (tmp_path / "repository").mkdir()
    return Points(tmp_path / "repository")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_whole_chain(source: Path, points: Points, tmp_path: Path, level: int) -> None:
    shutil.copytree([source, source.parent, source.parents[1]][level], tmp_path / "copy")
    done = import_points(points, tmp_path / "copy")
    assert [folder.name for folder in done.points] == [point_id(n) for n in range(3)] and not done.refused
    assert [folder.parent.name for folder in done.points] == ["vm%20%C3%A4"] * 3
    shutil.rmtree(tmp_path / "copy")
    shutil.rmtree(source)
    for folder, content in zip(done.points, CONTENTS, strict=True):
        assert content_of(folder, tmp_path / "out") == content
        qemu_agrees(folder / "disk-2000.qcow2", content)


def test_one_point_after_the_other(source: Path, points: Points) -> None:
    with pytest.raises(FormatError, match=f"stands on {point_id(0)}, which is not in the repository"):
        import_point(points, source / point_id(1))
    import_point(points, source / point_id(0))
    import_point(points, source / point_id(1))
    with pytest.raises(PointExists):
        import_point(points, source / point_id(1))
    done = import_points(points, source)
    assert [folder.name for folder in done.points] == [point_id(2)] and len(done.refused) == 2
    assert {entry["code"] for entry in done.to_dict()["refused"]} == {"store.exists"}


def test_another_parent_of_the_same_name(source: Path, points: Points, tmp_path: Path) -> None:
    make_chain(points, versions(mixed(3 << 20, 99), 1, 1), vm="vm ä")
    with pytest.raises(FormatError, match="another state of disk 2000"):
        import_point(points, source / point_id(1))


def _foreign(folder: Path) -> None:
    (folder / "setup.exe").write_bytes(b"MZ")


def _missing(folder: Path) -> None:
    (folder / "disk-2000.digests").unlink()


def _link(folder: Path) -> None:
    (folder / "disk-2000.qcow2").rename(folder.parent / "elsewhere")
    (folder / "disk-2000.qcow2").symlink_to("/etc/passwd")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _folder(folder: Path) -> None:
    (folder / "sub").mkdir()


def _renamed(folder: Path) -> None:
    folder.rename(folder.with_name(point_id(8)))


def _flipped(folder: Path) -> None:
    flip(folder / "disk-2000.qcow2", 66_000)


def _header(folder: Path) -> None:
    flip(folder / "disk-2000.qcow2", 30)


def _manifest(folder: Path) -> None:
    flip(folder / "manifest.json", 40)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (_foreign, ForeignFile, "setup.exe is not part"),
        (_missing, ForeignFile, "disk-2000.digests is missing"),
        (_link, ForeignFile, "not a regular file"),
        (_pipe, ForeignFile, "not a regular file"),
        (_folder, ForeignFile, "not a regular file"),
        (_renamed, ForeignFile, "manifest is that of"),
        (_flipped, Damaged, "disk-2000.qcow2 at offset 65536"),
        (_header, Damaged, "disk-2000.qcow2 at offset 0"),
        (_manifest, FormatError, "does not match|do not match|manifest"),
    ],
)
def test_what_is_refused(source: Path, points: Points, change, error, text) -> None:  # type: ignore[no-untyped-def]
    change(source / point_id(0))
    (folder,) = [path for path in source.iterdir() if path.name in (point_id(0), point_id(8))]
    with pytest.raises(error, match=text):
        import_point(points, folder)
    done = import_points(points, source)
    assert done.points == [] and len(done.refused) == 3, "what stands on it is refused too"
    assert all(isinstance(reason, VadplabError) for reason in done.refused.values())
    assert points.list() == [] and not list(points.repository.glob("*/*/.*"))


def test_nothing_to_import(points: Points, tmp_path: Path) -> None:
    for folder in (tmp_path / "nothing", points.repository):
        with pytest.raises(PointNotFound):
            import_points(points, folder)
    with pytest.raises(ForeignFile):
        import_point(points, points.repository)


def test_no_repository(source: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        import_point(Points(tmp_path / "gone"), source / point_id(0))
