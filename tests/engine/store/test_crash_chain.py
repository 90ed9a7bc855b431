# SPDX-License-Identifier: MIT
"""The world stops between any two system calls of an incremental or a merge, or the process is killed at any moment:
every visible point stays what it was, and the next run finishes the work and leaves nothing behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from engine.errors import VadplabError
from engine.store import health, merge, retention
from engine.store.points import Points
from engine.store.retention import Policy
from tests.engine.store import test_crash
from tests.engine.store.disks import START, content_of, make_chain, make_incremental, point_id, versions
from tests.engine.store.test_crash import Crash, Stop
from tests.engine.store.test_qcow2 import mixed, qemu_agrees

CONTENTS = versions(mixed(1 << 20, 6), 5, 9)
NOW = START + timedelta(hours=50)
BY_ID = {point_id(number): content for number, content in enumerate(CONTENTS)}


def append(points: Points) -> None:
    make_incremental(points, CONTENTS[3], CONTENTS[4], point=point_id(4), parent=point_id(3))


def prune(points: Points) -> None:
    retention.apply(points, "demo", "vm1", Policy(count=2), NOW, wait=0)


def synthesize(points: Points) -> None:
    merge.synthetic_full(points, "demo", "vm1", point_id(2), wait=0)


def check(repository: Path, out: Path, *, foreign: bool = False) -> list[str]:
    """Every visible point as a process sees it that starts afterwards (`foreign`: and as QEMU sees it); the ids."""
    found = Points(repository).list()
    for point in found:
        assert content_of(point.folder, out) == BY_ID[point.folder.name], point.folder.name
        if foreign:
            qemu_agrees(point.folder / "disk-2000.qcow2", BY_ID[point.folder.name])
    if found:
        assert health.verify(found[0].folder.parent).intact
    return [point.folder.name for point in found]


def hidden(repository: Path) -> list[str]:
    return [path.name for path in (repository / "demo" / "vm1").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("work", "before", "after"), [(append, 4, [0, 1, 2, 3, 4]), (prune, 4, [2, 3]), (synthesize, 4, [0, 1, 2, 3])]
)
def test_stopped_before_each_call(
    tmp_path: Path, work: Callable[[Points], None], before: int, after: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_crash, "CALLS", (*test_crash.CALLS, "exchange", "remove_tree"))
    first, last = [point_id(n) for n in range(before)], [point_id(n) for n in after]
    make_chain(Points(tmp_path), CONTENTS[:before])
    at, seen = 0, set()
    while True:
        at += 1
        repository = tmp_path / f"r{at}"
        shutil.copytree(tmp_path / "demo", repository / "demo")
        points = Points(repository)
        with pytest.MonkeyPatch.context() as patch:
            crash = Crash(patch, at)
            try:
                work(points)
            except (Stop, VadplabError):
                assert len(crash.seen) >= at
            done = len(crash.seen) < at
        for making in points._making.values():  # a dead process holds no locks
            making.release()
        names = check(repository, tmp_path / "out")
        seen.add(tuple(names))
        assert set(last) <= set(names) | {point_id(4)} and set(names) <= set(first) | set(last)
        if done:
            assert check(repository, tmp_path / "out", foreign=True) == last
            break
        if work is not append or point_id(4) not in names:
            work(Points(repository))
        assert check(repository, tmp_path / "out") == last and not hidden(repository)
    assert at > 12 and tuple(last) in seen and tuple(first) in seen


SCRIPT = """
import pathlib, sys
from engine.store.points import Points
from tests.engine.store.test_crash_chain import append, prune
points = Points(pathlib.Path(sys.argv[1]))
print("go", flush=True)
append(points)
prune(points)
"""


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_a_random_moment(tmp_path: Path, seed: int) -> None:
    killed(tmp_path, random.Random(seed))


@pytest.mark.slow
def test_killed_at_many_moments(tmp_path: Path) -> None:
    rng = random.Random(99)
    for turn in range(40):
        (tmp_path / str(turn)).mkdir()
        killed(tmp_path / str(turn), rng)


def killed(tmp_path: Path, rng: random.Random) -> None:
    """Kills an append that is followed by a prune; both are then done by the next process."""
    repository = tmp_path / "repository"
    repository.mkdir()
    make_chain(Points(repository), CONTENTS[:4])
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(repository)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(rng.uniform(0, 0.3))  # not a wait for something: the moment of death is the parameter
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    names = check(repository, tmp_path / "out")
    assert names[-1] in (point_id(3), point_id(4)) and point_id(3) in names
    points = Points(repository)
    if point_id(4) not in names:
        append(points)
    prune(points)
    assert check(repository, tmp_path / "out", foreign=True) == [point_id(3), point_id(4)] and not hidden(repository)
