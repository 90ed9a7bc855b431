# SPDX-License-Identifier: MIT
"""Several jobs, proxies and repositories: the scheduler spreads by limits, nobody disturbs the others, a lost proxy is replaced.

The lab has two physical proxies with one task at a time each, and two repositories.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from lab.cli import console
from tests.e2e import guestdisks, harness
from tests.e2e.harness import COMMAND_DEADLINE, VADPLAB, Document, Lab

pytestmark = pytest.mark.slow

DISKS = {("linux-vm", 2000), ("files-vm", 2000), ("files-vm", 2001)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    home = tmp_path_factory.mktemp("several")

    def more(plan: Document) -> None:
        plan["hosts"]["proxy-3"] = {"role": "proxy", "zone": "backup", "address": "10.77.21.10/24"}
        plan["hosts"]["repository-2"] = {"role": "repository", "zone": "backup", "address": "10.77.22.10/24"}
        plan["array"]["initiators"] = ["proxy-1"]
        plan["backup"]["proxies"] = [{"host": "proxy-1", "tasks": 1}, {"host": "proxy-3", "tasks": 1}]
        plan["backup"]["repositories"] = [{"host": "repository-1", "tasks": 4}, {"host": "repository-2", "tasks": 4}]
        job = plan["backup"]["jobs"][0]
        plan["backup"]["jobs"] = [
            {**job, "name": "both", "mode": "nbd"},
            {**job, "name": "linux", "vms": ["linux-vm"], "mode": "nbd"},
            {**job, "name": "files", "vms": ["files-vm"], "mode": "nbd", "guest_scripts": False},
        ]

    with harness.up(home, "several", "--topology", str(harness.drill_topology(home, more))) as found:
        yield found


def tasks(document: Document) -> dict[str, Document]:
    """The tasks of a run by their id."""
    return {task["task"]: task for vm in document["vms"] for task in vm["tasks"]}


def assert_points_equal_truth(lab: Lab, document: Document, folder: Path, disks: int) -> None:
    """Every disk of this run's points equals the truth."""
    points = [guestdisks.find_point(lab, p["point"], p["vm"]) for p in document["restore_points"]]
    assert sum(guestdisks.assert_equals_truth(lab, point, folder) for point in points) == disks


def test_one_job_uses_both_proxies_and_both_repositories(lab: Lab, tmp_path: Path) -> None:
    document, run = lab.job(name="both", code=0)
    assert document["result"] == "success"
    found = tasks(document)
    assert {t["proxy"] for t in found.values()} == {"proxy-1", "proxy-3"}
    kept = {vm["vm"]: {t["repository"] for t in vm["tasks"]} for vm in document["vms"]}
    assert all(len(names) == 1 for names in kept.values()), "one restore point, one repository"
    assert set.union(*kept.values()) == {"repository-1", "repository-2"}
    assert len(run.attempts("H5")) == len(DISKS)
    assert_points_equal_truth(lab, document, tmp_path, 3)
    again, _ = lab.job(name="both", code=0)
    assert {p["kind"] for p in again["restore_points"]} == {"incremental"}, "a VM stays with its chain"
    assert {vm["vm"]: {t["repository"] for t in vm["tasks"]} for vm in again["vms"]} == kept
    assert_points_equal_truth(lab, again, tmp_path, 3)


def test_two_jobs_at_the_same_time_to_one_repository(lab: Lab, tmp_path: Path) -> None:
    """Both want the proxies' only slots; neither disturbs the other's chain. Typed on the console: nothing is recorded."""
    names = ("linux", "files")
    for name in names:
        document, _ = lab.job(name=name, code=0)
        assert {t["repository"] for t in tasks(document).values()} == {"repository-1"}
    guestdisks.write_blocks(lab, "files-vm", 2000, 16, seed=6)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(console.run, lab.folder, ["job", "run", name]) for name in names]
        results = [one.result(COMMAND_DEADLINE) for one in running]
    assert [(code, d["result"]) for code, d in results] == [(0, "success"), (0, "success")], results
    (_, one), (_, other) = results
    assert max(one["started"], other["started"]) < min(one["ended"], other["ended"]), (
        "they did not run at the same time"
    )
    for document, disks in ((one, 1), (other, 2)):
        assert {t["repository"] for t in tasks(document).values()} == {"repository-1"}
        assert {p["kind"] for p in document["restore_points"]} == {"incremental"}
        assert_points_equal_truth(lab, document, tmp_path, disks)
    assert lab.done("points", "verify")["intact"] is True
    assert set(lab.snapshots().values()) == {0}


def test_proxy_that_dies_loses_only_its_tasks_and_they_are_read_elsewhere(lab: Lab, tmp_path: Path) -> None:
    lab.done("job", "edit", "files", "--throttle", str(1 << 20))
    guestdisks.write_blocks(lab, "files-vm", 2000, 96, seed=7)
    guestdisks.write_blocks(lab, "files-vm", 2001, 96, seed=8)
    try:
        job = subprocess.Popen(
            [str(VADPLAB), "--lab", lab.name, "job", "run", "files", "--json"],
            env={**os.environ, "VADPLAB_HOME": str(lab.home)},
            stdout=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + COMMAND_DEADLINE
        while _partial_bytes(lab) < 2 << 20:
            assert job.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        movers = "hosts/proxy-3/.*role source"  # in the lab's own pid namespace
        harness.run_text(lab.home, "--lab", lab.name, "exec", "proxy-3", "--", "pkill", "-KILL", "-f", movers)
        out, _ = job.communicate(timeout=COMMAND_DEADLINE)
    finally:
        if job.poll() is None:
            job.kill()
            job.wait()
        lab.done("job", "edit", "files", "--set", "rules.throttle=null")
    document = json.loads(out.splitlines()[-1])
    assert (job.returncode, document["result"], document["evidence"]) == (0, "warning", "consistent"), document
    lost = [t for t in tasks(document).values() if t["lost"]]
    assert len(lost) == 1, "each proxy had one task"
    assert lost[0]["lost"][0]["proxy"] == "proxy-3"
    assert lost[0]["lost"][0]["error"]["code"]
    assert {t["proxy"] for t in tasks(document).values()} == {"proxy-1"}
    assert [w["code"] for w in document["warnings"]] == ["job.proxy-lost"]
    assert_points_equal_truth(lab, document, tmp_path, 2)
    assert set(lab.snapshots().values()) == {0}


def _partial_bytes(lab: Lab) -> int:
    found = 0
    for path in lab.folder.path.glob("hosts/repository-*/var/repository/files/files-vm/.partial-*/*.qcow2"):
        try:
            found += path.stat().st_size
        except FileNotFoundError:
            continue  # it ended meanwhile
    return found
