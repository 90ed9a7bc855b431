# SPDX-License-Identifier: MIT
"""A repository whose disk is not mounted is told from an empty one, and nothing is written beneath its mount point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.store import health, marker
from engine.store.errors import RepositoryGone
from engine.store.points import Points, new_point_id


def used(folder: Path) -> Points:
    """A repository in which something was begun."""
    folder.mkdir()
    points = Points(folder)
    points.begin("job", "vm", new_point_id())
    points.close()
    return points


@pytest.mark.parametrize(
    "act",
    [
        lambda points: points.begin("job", "vm", new_point_id()),
        lambda points: points.vm_folder("job", "vm"),
        lambda points: points.list(),
        lambda points: points.free_bytes(),
        lambda points: health.verify_repository(points.repository),
    ],
    ids=["begin", "import", "list", "free", "verify"],
)
def test_a_repository_without_its_disk_is_gone(tmp_path: Path, act: Callable[[Points], object]) -> None:
    points = used(tmp_path / "repository")
    disk = points.repository.rename(tmp_path / "disk")
    points.repository.mkdir()  # what is left of a mount point
    with pytest.raises(RepositoryGone, match="its disk is not mounted") as caught:
        act(points)
    assert str(points.repository) in caught.value.message and str(marker.beside(points.repository)) in caught.value.next
    assert list(points.repository.iterdir()) == [], "something was written beneath the mount point"
    points.repository.rmdir()
    disk.rename(points.repository)
    act(points)
    points.close()


def test_another_repositorys_disk_is_refused(tmp_path: Path) -> None:
    one, other = used(tmp_path / "one"), used(tmp_path / "other")
    one.repository.rename(tmp_path / "aside")
    other.repository.rename(one.repository)
    with pytest.raises(RepositoryGone, match="another repository's marker"):
        one.list()


def test_a_repository_that_was_moved_is_taken_as_it_is(tmp_path: Path) -> None:
    points = used(tmp_path / "old")
    ident = (points.repository / marker.NAME).read_text()
    moved = Points(points.repository.rename(tmp_path / "new"))
    moved.begin("job", "vm", new_point_id())
    moved.close()
    assert (moved.repository / marker.NAME).read_text() == ident == marker.beside(moved.repository).read_text()


def test_only_a_new_repository_is_made(tmp_path: Path) -> None:
    new = tmp_path / "a" / "new"
    marker.make(new)
    marker.make(new)
    assert list(new.iterdir()) == []
    points = used(tmp_path / "old")
    points.repository.rename(tmp_path / "aside")
    with pytest.raises(RepositoryGone, match="no such folder"):
        marker.make(points.repository)
    assert not points.repository.exists()


def test_reading_makes_no_marker(tmp_path: Path) -> None:
    assert Points(tmp_path).list() == [] and not (tmp_path / marker.NAME).exists()
