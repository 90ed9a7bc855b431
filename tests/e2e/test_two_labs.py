# SPDX-License-Identifier: MIT
"""Two labs with the same addresses run their jobs at the same time; neither sees anything of the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.harness import Document, Lab, Run

pytestmark = pytest.mark.slow


def test_two_labs_run_their_jobs_at_the_same_time(drill: Lab, drill_home: Path, tmp_path: Path) -> None:
    topology = str(drill_home / "drill.yaml")
    with harness.up(drill_home, "twin", "--topology", topology) as twin:
        labs = [drill, twin]
        # One of the two is blocked at 902: were the labs one, both would fail, or none.
        twin.done("firewall", "block", "H5", "--with", "reset")
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(lab.job, code=code) for lab, code in zip(labs, (0, 1), strict=True)]
            (good, good_run), (bad, bad_run) = (job.result() for job in jobs)
        assert overlap(good, bad), "the runs did not happen at the same time"
        assert good["result"] == "success"
        assert (bad["error"]["code"], bad["error"]["step"]) == ("connect.refused", "19")
        assert good_run.verdicts("H5") == {"allowed"}
        assert bad_run.verdicts("H5") == {"refused"}
        for run in (good_run, bad_run):
            assert run.flows["foreign"] == []
            assert as_many_syns_as_flows(run)
        assert twin.points() == []
        assert {p["session"] for p in drill.points()} & {good_run.flows["session"]}
        # With two labs a command must say which one it means.
        nameless = harness.vadplab(drill_home, "status")
        assert (nameless.code, nameless.document["code"]) == (2, "lab.ambiguous")
        point = next(p for p in good["restore_points"] if p["vm"] == "files-vm")
        disk = ("restore", point["point"], "--vm", "files-vm", "--disk", "2", "--to", str(tmp_path / "disk"))
        assert drill.done(*disk, "--compare")["comparison"]["equal"]
    assert drill.done("status")["state"] == "up", "the end of one is not the end of the other"


def overlap(one: Document, other: Document) -> bool:
    """Whether two runs shared a moment (times are ISO 8601, UTC)."""
    return max(one["started"], other["started"]) < min(one["ended"], other["ended"])


def as_many_syns_as_flows(run: Run) -> bool:
    """Whether the capture holds exactly the connections that were judged."""
    return run.first_syns() == {
        (f["local"][0], f["remote"][0], f["remote"][1]) for f in run.flows["flows"] if f["start"] is not None
    }
