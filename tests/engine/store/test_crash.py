# SPDX-License-Identifier: MIT
"""The world stops between any two system calls of a backup: no unfinished point is ever visible, the older one stays whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.errors import VadplabError
from engine.store import durable
from engine.store.point_disk import PointDisk
from engine.store.points import Points
from engine.store.restore import to_file
from tests.engine.store.disks import make_point
from tests.engine.store.test_qcow2 import mixed

OLD, NEW = "20261125T071500Z-aaaa", "20261125T081500Z-bbbb"
CONTENT = mixed(3 << 20, 6)
CALLS = ("write_at", "truncate", "sync", "make_folder", "rename")


class Stop(BaseException):
    """The process ends here."""


class Crash:
    """Ends the run before call number `at` to the durable functions; writes may be cut in half by it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.seen: list[str] = []
        self._at = at
        for name in CALLS:
            monkeypatch.setattr(durable, name, self._wrap(name, getattr(durable, name)))

    def _wrap(self, name, real):  # type: ignore[no-untyped-def]
        def call(*args):  # type: ignore[no-untyped-def]
            self.seen.append(name)
            if len(self.seen) == self._at:
                if name == "write_at":
                    fd, data, offset = args
                    real(fd, memoryview(data)[: len(data) // 8192 * 4096], offset)
                raise Stop
            if len(self.seen) > self._at:
                raise Stop
            return real(*args)

        return call


def run(points: Points) -> None:
    make_point(points, CONTENT, point=NEW)


def visible(repository: Path) -> list[str]:
    """As a process that starts afterwards sees it."""
    return [point.folder.name for point in Points(repository).list()]


def count_calls(tmp_path: Path) -> int:
    (tmp_path / "count").mkdir()
    points = Points(tmp_path / "count")
    make_point(points, CONTENT, point=OLD)
    with pytest.MonkeyPatch.context() as patch:
        crash = Crash(patch, 10**9)
        run(points)
    assert crash.seen[-2:] == ["rename", "sync"]
    return len(crash.seen)


def test_stopped_before_each_call(tmp_path: Path) -> None:
    total = count_calls(tmp_path)
    assert total > 12, "folders, segments, length, header, digests, manifest, rename"
    outcomes = []
    for at in range(1, total + 1):
        repository = tmp_path / f"r{at}"
        repository.mkdir()
        old = make_point(Points(repository), CONTENT, point=OLD)
        points = Points(repository)
        with pytest.MonkeyPatch.context() as patch:
            crash = Crash(patch, at)
            with pytest.raises((Stop, VadplabError)):
                run(points)
            assert len(crash.seen) >= at
        outcomes.append(visible(repository))
        assert outcomes[-1] in ([OLD], [OLD, NEW]), f"before call {at} ({crash.seen[at - 1]})"
        for name in outcomes[-1]:
            with PointDisk(old.parent / name, 2000) as disk:
                to_file(disk, tmp_path / "out")
            assert (tmp_path / "out").read_bytes() == CONTENT
        points.close()
    assert outcomes[-1] == [OLD, NEW], "after the rename the point is there"
    assert outcomes[-2] == [OLD]


SCRIPT = """
import sys, pathlib
from engine.store.points import Points
from tests.engine.store.disks import make_point
from tests.engine.store.test_crash import CONTENT, NEW
print("go", flush=True)
while True:
    points = Points(pathlib.Path(sys.argv[1]))
    make_point(points, CONTENT, point=NEW, vm="loop")
    import shutil; shutil.rmtree(points.repository / "demo" / "loop" / NEW)
"""


def test_killed_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(5)
    for turn in range(5):
        repository = tmp_path / f"k{turn}"
        repository.mkdir()
        make_point(Points(repository), CONTENT, point=OLD)
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(repository)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.25))  # not a wait for something: the moment of death is the parameter
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        points = Points(repository)
        for point in points.list():
            if point.manifest is None:
                # the loop's own removal was cut, not a commit
                assert point.folder.parent.name == "loop"
                continue
            if (point.folder / "disk-2000.qcow2").exists() and (point.folder / "disk-2000.digests").exists():
                with PointDisk(point.folder, 2000) as disk:
                    to_file(disk, tmp_path / "out")
                assert (tmp_path / "out").read_bytes() == CONTENT
        points.begin("demo", "loop", "20261125T091500Z-cccc")
        assert [p.name for p in (repository / "demo" / "loop").glob(".partial-*")] == [".partial-20261125T091500Z-cccc"]
        points.close()
