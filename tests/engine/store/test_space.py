# SPDX-License-Identifier: MIT
"""A repository that is too small, fills up, is read-only, or goes away: a clear error, and the chain as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.store import durable, health, space
from engine.store.errors import ReadOnlyRepository, RepositoryGone, StoreError, StoreFull, from_write_error
from engine.store.merge import synthetic_full
from engine.store.points import Points
from tests.engine.store.disks import content_of, make_chain, make_incremental, make_point, point_id, versions
from tests.engine.store.test_qcow2 import mixed


@pytest.fixture
def points(tmp_path: Path) -> Points:
    (tmp_path / "repository").mkdir()
    return Points(tmp_path / "repository")


def test_estimates_follow_the_history(points: Points) -> None:
    contents = versions(mixed(8 << 20, 1), 2, 7)
    assert points.estimate("demo", "vm1", data=100 << 20, capacity=100 << 20) == pytest.approx(60 << 20, rel=0.1)
    (full, _) = make_chain(points, contents)
    stored = (full / "disk-2000.qcow2").stat().st_size
    found = points.estimate("demo", "vm1", data=8 << 20, capacity=8 << 20)
    assert found > 1 << 20 and found <= 8 * stored
    assert space.estimate(0, 1 << 40) == (1 << 29) + (1 << 20), "the digest file of a huge disk counts"


def test_space_is_checked_and_reserved(points: Points) -> None:
    free = points.free_bytes()
    with pytest.raises(StoreFull, match="MiB are needed"):
        points.begin("demo", "vm1", point_id(0), estimate=free * 2)
    assert not (points.repository / "demo" / "vm1" / f".partial-{point_id(0)}").exists()
    points.begin("demo", "vm1", point_id(0), estimate=free * 2 // 3)
    with pytest.raises(StoreFull, match="not reserved"):
        points.begin("demo", "vm2", point_id(0), estimate=free * 2 // 3)
    points.abort("demo", "vm1", point_id(0))
    points.begin("demo", "vm2", point_id(0), estimate=free * 2 // 3)


def test_what_is_written_is_no_longer_reserved(points: Points) -> None:
    folder = points.begin("demo", "vm1", point_id(0), estimate=64 << 20)
    durable.write_file(folder / "half", os.urandom(16 << 20))
    reserved = space.free(points.repository) - points.free_bytes()
    assert reserved <= 49 << 20


@pytest.mark.parametrize(
    ("number", "kind"), [(28, StoreFull), (122, StoreFull), (30, ReadOnlyRepository), (13, ReadOnlyRepository),
                         (2, RepositoryGone), (116, RepositoryGone), (5, StoreError)]
)  # fmt: skip
def test_errors_of_the_disk(number: int, kind: type[StoreError]) -> None:
    error = from_write_error(OSError(number, os.strerror(number)), "disk")
    assert type(error) is kind and "disk: " in error.message


def test_a_repository_that_went_away(points: Points, tmp_path: Path) -> None:
    content = mixed(1 << 20, 1)
    made = make_point(points, content, point=point_id(0))
    points.repository.rename(tmp_path / "unplugged")
    with pytest.raises(RepositoryGone):
        points.list()
    with pytest.raises(RepositoryGone):
        points.begin("demo", "vm1", point_id(1))
    with pytest.raises(RepositoryGone):
        points.free_bytes()
    (tmp_path / "unplugged").rename(points.repository)
    assert content_of(made, tmp_path / "out") == content


def test_it_goes_away_while_a_point_is_made(points: Points, tmp_path: Path) -> None:
    from engine.store.target import TargetDisk
    from tests.engine.store.disks import document, fill

    content = mixed(1 << 20, 1)
    folder = points.begin("demo", "vm1", point_id(0))
    with TargetDisk(folder, "disk-2000.qcow2", len(content)) as disk:
        fill(disk, content)
        stored = disk.commit()
    points.repository.rename(tmp_path / "unplugged")
    with pytest.raises(StoreError):
        points.commit("demo", "vm1", point_id(0), document(point_id(0), stored))
    points.abort("demo", "vm1", point_id(0))


INSIDE = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from tests.engine.store.test_space import full_disk, read_only
{"full": full_disk, "read-only": read_only}[sys.argv[3]](pathlib.Path(sys.argv[1]))
print("passed")
"""


def on_a_small_disk(tmp_path: Path, what: str) -> None:
    """Runs the other half of a test where `tmp_path`/small is a file system of 12 MiB of its own."""
    (tmp_path / "small").mkdir()
    root = Path(__file__).parents[3]
    script = f'mount -t tmpfs -o size=12m none {tmp_path}/small && exec "$0" -c "$1" {tmp_path} {root} {what}'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable, INSIDE],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.endswith("passed\n"), done.stderr


def full_disk(folder: Path) -> None:
    """Inside: an incremental, a full and a merge that do not fit; afterwards everything is as it was."""
    points = Points(folder / "small")
    contents = versions(os.urandom(4 << 20), 2, 7)
    made = make_chain(points, contents)
    before = sorted(str(path) for path in points.repository.rglob("*"))
    big = os.urandom(12 << 20)
    for attempt in range(2):
        with pytest.raises(StoreFull):
            make_incremental(points, contents[1], big, point=point_id(5), parent=point_id(1))
        points.abort("demo", "vm1", point_id(5))
        with pytest.raises(StoreFull):
            make_point(points, big, point=point_id(6 + attempt))
        points.abort("demo", "vm1", point_id(6 + attempt))
        assert sorted(str(path) for path in points.repository.rglob("*")) == before
    while points.free_bytes() > 1 << 20:
        durable.write_file(points.repository / f"ballast-{points.free_bytes()}", bytes(1 << 20))
    with pytest.raises(StoreFull, match="nothing was changed"):
        synthetic_full(points, "demo", "vm1", point_id(1))
    assert health.verify(made[0].parent, deep=True).intact
    for at, content in zip(made, contents, strict=True):
        assert content_of(at, folder / "out") == content
    for path in points.repository.glob("ballast-*"):
        path.unlink()
    make_incremental(points, contents[1], contents[0], point=point_id(5), parent=point_id(1))


def read_only(folder: Path) -> None:
    """Inside: nothing can be written, and everything that is there can be read, verified and recovered."""
    points = Points(folder / "small")
    contents = versions(mixed(2 << 20, 1), 2, 7)
    made = make_chain(points, contents)
    subprocess.run(["mount", "-o", "remount,ro", folder / "small"], check=True)
    for kind, parent in (("full", None), ("incremental", point_id(1))):
        with pytest.raises(ReadOnlyRepository):
            points.begin("demo", "vm1", point_id(5), kind=kind, parent=parent)  # type: ignore[arg-type]
    with pytest.raises(ReadOnlyRepository):
        points.begin("demo", "new", point_id(5))
    with pytest.raises(ReadOnlyRepository):
        synthetic_full(points, "demo", "vm1", point_id(1))
    assert health.verify(made[0].parent, deep=True).intact
    assert content_of(made[1], folder / "out") == contents[1]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system in a namespace of its own")
@pytest.mark.parametrize("what", ["full", "read-only"])
def test_on_a_small_disk(tmp_path: Path, what: str) -> None:
    on_a_small_disk(tmp_path, what)
