# SPDX-License-Identifier: MIT
"""The benchmark runs, compares what it says it compares, says which goals are met, and refuses bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import backup, site
from bench.__main__ import size
from bench.disk import CLUSTER, change, make
from bench.goals import of
from bench.hosts import areas
from bench.profile import Profile
from bench.rows import Goal, Row, compare
from tests.lab.realise.labs import why_no_lab


def test_ratios_are_speed_against_the_reference() -> None:
    rows = [Row("a", [2.0, 4.0, 3.0], mib=30), Row("b", [1.5])]
    compare(rows, ["a", "b", "not measured"])
    assert rows[0].ratios == {"b": 0.5} and rows[1].ratios == {"a": 2.0}
    assert rows[0].rate == 10


def test_the_disk_is_the_same_each_time_and_has_holes(tmp_path: Path) -> None:
    written = make(tmp_path / "a", 24 << 20)
    assert 0 < written < 24 << 20
    make(tmp_path / "b", 24 << 20)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sum(length for _, length in areas(tmp_path / "a")) == written


def test_the_changed_ranges_are_what_differs(tmp_path: Path) -> None:
    make(tmp_path / "a", 32 << 20)
    ranges = change(tmp_path / "a", tmp_path / "b", 0.03)
    old, new = (tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()
    differing = {at for at in range(0, len(old), CLUSTER) if old[at : at + CLUSTER] != new[at : at + CLUSTER]}
    named = {at for offset, length in ranges for at in range(offset, offset + length, CLUSTER)}
    assert differing == named and len(named) == round(len(old) // CLUSTER * 0.03)


def test_a_goal_is_met_at_its_mark_and_not_beyond_it() -> None:
    assert Goal("", 2.0, 2.0).met and not Goal("", 2.0, 1.99).met
    assert Goal("", 0.06, 0.06, at_least=False).met and not Goal("", 0.06, 0.061, at_least=False).met


def test_goals_are_ratios_of_the_rows() -> None:
    groups = {
        backup.FULL: [backup.BORG, backup.RESTIC, backup.QEMU, backup.ALONE, *backup.OURS.values()],
        backup.INCREMENTAL: [backup.BORG, *backup.OURS.values()],
        backup.RESTORE: [backup.QEMU_RESTORE, backup.LOCAL, backup.LINK],
    }
    rows = {(group, name): Row(name, [1.0]) for group, names in groups.items() for name in names}
    rows[backup.FULL, backup.BORG].seconds = [2.5]
    rows[backup.INCREMENTAL, backup.OURS["san"]].seconds = [0.05]
    goals = of(rows)
    met = [goal.text for goal in goals if goal.met]
    assert [goal.found for goal in goals if backup.BORG in goal.text] == [2.5, 2.5, 1.0, 20.0]
    assert met == [
        f"nbd: full at least 2.0 × {backup.BORG}",
        f"nbd: full at least 0.6 × {backup.ALONE}",
        f"san: full at least 2.0 × {backup.BORG}",
        f"san: full at least 0.6 × {backup.ALONE}",
        "san: incremental at most 0.06 × full",
        f"san: incremental at least 10 × {backup.BORG}",
    ]


def test_a_profile_counts_and_puts_everything_back() -> None:
    class Thing:
        def work(self, count: int) -> int:
            return sum(range(count))

    before, profile = Thing.work, Profile()
    profile.patch("work", Thing, "work")
    assert Thing().work(100_000) == sum(range(100_000)) and Thing().work(3) == 3
    profile.undo()
    (row,) = profile.to_list()
    assert Thing.work is before and row["stage"] == "work" and row["calls"] == 2 and row["cpu"] > 0


def test_sizes() -> None:
    assert size("3MiB") == 3 << 20
    with pytest.raises(Exception, match="not a size"):
        size("3MB")


def test_unknown_measurement() -> None:
    assert subprocess.run([sys.executable, "-m", "bench", "nonsense"], capture_output=True).returncode == 2


def test_missing_tools_are_named_with_their_packages(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "backup"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert done.returncode == 3
    assert "apt-get install" in done.stderr and "restic" in done.stderr and "borgbackup" in done.stderr


def test_a_process_counts_with_its_children_but_not_with_other_daemons(tmp_path: Path) -> None:
    def process(pid: int, ticks: str, children: str) -> None:
        task = tmp_path / str(pid) / "task" / str(pid)
        task.mkdir(parents=True)
        (task / "children").write_text(children)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a name) S {'0 ' * 10}{ticks} 20 0")

    process(1, "1 2 3 4", "2 3 ")
    process(2, "10 0 0 0", "")
    process(3, "100 0 0 0", "99 ")
    tick = os.sysconf("SC_CLK_TCK")
    assert site._tree(tmp_path, 1, {3}) == 20 / tick, "user, system, and both of reaped children"
    assert site._tree(tmp_path, 3, set()) == 100 / tick, "a child that has ended meanwhile counts nothing"


def test_a_run_says_when_its_steps_were_and_when_the_point_was_visible() -> None:
    def event(kind: str, step: str, mono: int, **more: str) -> dict[str, Any]:
        return {"kind": kind, "step": step, "mono": mono * 10**9, **more}

    ran = site.Ran({}, [event("step", "20c", 1, phase="begin"), event("step", "20c", 3, phase="end"),
                        event("bytes", "20c", 4), event("bytes", "6", 5), event("bytes", "6", 6)], {})  # fmt: skip
    assert (ran.at("20c", "begin"), ran.at("20c", "end"), ran.visible(), ran.span()) == (1, 3, 5, (1, 6))
    with pytest.raises(RuntimeError, match="step 22 did not begin"):
        ran.at("22", "begin")


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or why_no_lab() is not None, reason="needs root and a lab")
def test_a_small_run_through_a_lab(tmp_path: Path) -> None:
    (found,) = _small_run("jobs", tmp_path)["measurements"]
    names = {(row["group"], row["name"]) for row in found["rows"]}
    assert {(group, name) for group in (backup.FULL, backup.INCREMENTAL) for name in backup.OURS.values()} < names
    assert {(backup.RESTORE, backup.QEMU_RESTORE), (backup.RESTORE, backup.LINK)} < names
    assert all(row["median"] > 0 and row["out_mib"] > 0 for row in found["rows"])
    assert len(found["goals"]) == 15
    full, incremental = (
        {
            stage["stage"]: stage
            for stage in found["stages"]
            if (stage["subject"], stage["half"]) == ("vadplab nbd", group)
        }
        for group in (backup.FULL, backup.INCREMENTAL)
    )
    for stages in (full, incremental):
        assert stages["20, 21: read, pack, send, write"]["wall"] > 0
        assert stages["CPU: proxy-1: transport"]["cpu"] > 0 < stages["CPU: repository-1: transport"]["cpu"]


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: FUSE files and an iSCSI target")
def test_a_small_run(tmp_path: Path) -> None:
    document = _small_run("backup", tmp_path)
    (found,) = document["measurements"]
    assert document["schema"] == "vadplab.bench/1"
    names = {group: {row["name"] for row in found["rows"] if row["group"] == group} for group in
             (backup.FULL, backup.INCREMENTAL, backup.RESTORE)}  # fmt: skip
    peers = {backup.QEMU, backup.RESTIC, backup.BORG}
    assert peers | {backup.NBDCOPY, backup.ALONE} | set(backup.OURS.values()) < names[backup.FULL]
    assert peers | set(backup.OURS.values()) < names[backup.INCREMENTAL]
    assert names[backup.RESTORE] == {backup.QEMU_RESTORE, backup.LOCAL, backup.LINK}
    for row in found["rows"]:
        assert row["median"] > 0 and row["out_mib"] > 0
        assert row["ratios"] or row["name"] == backup.QEMU_RESTORE
    assert len(found["goals"]) == 16
    stages = {(stage["half"], stage["stage"]) for stage in found["stages"]}
    assert {("source", "compress"), ("source", "read: wait"), ("target", "verify: expand")} < stages


def _small_run(name: str, folder: Path) -> dict[str, Any]:
    """The document of a measurement of a small disk, once; the table beside it names every goal."""
    missing = [package for tool, package in backup.TOOLS.items() if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    out = folder / "bench.json"
    command = [sys.executable, "-m", "bench", name, "--size", "16MiB", "--rounds", "1", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(out.read_text())
    assert all(goal["text"] in done.stdout for one in document["measurements"] for goal in one["goals"])
    return document
