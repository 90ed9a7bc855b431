# SPDX-License-Identifier: MIT
"""A job is stopped, by Ctrl-C or by `job stop`: guests thaw, snapshots are committed, no point of that run is visible."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import JOB, Lab, Run
from tests.e2e.test_kills import run_until

pytestmark = pytest.mark.slow

Stop = Callable[[Lab, "subprocess.Popen[str]"], None]


def ctrl_c(lab: Lab, job: subprocess.Popen[str]) -> None:
    job.send_signal(signal.SIGINT)


def job_stop(lab: Lab, job: subprocess.Popen[str]) -> None:
    assert lab.done("job", "stop", JOB)["schema"] == "vadplab.job-stop/1"


@pytest.mark.parametrize(
    ("step", "stop"),
    [("7", ctrl_c), ("13", ctrl_c), ("16", ctrl_c), ("20c", ctrl_c), ("20c", job_stop)],
    ids=["connecting", "freezing", "thawing", "reading", "job-stop"],
)
def test_a_stopped_job_leaves_nothing(drill: Lab, step: str, stop: Stop) -> None:
    before = {p["point"] for p in drill.points()}
    answer = run_until(drill, step, lambda job: stop(drill, job))
    document = answer.document
    assert (answer.code, document["result"], document["error"]["code"]) == (1, "failed", "job.stopped")
    assert document["evidence"] == "consistent", document["problems"]
    assert "broken" not in document["invariants"].values()
    visible = {p["point"] for p in document["restore_points"]}
    run = Run(Path(document["folder"]))
    # A point whose commit was under way when the stop came may have become visible; then the result names it.
    after = {p["point"] for p in drill.points()}
    assert after - before == visible
    calls = run.gateway()
    assert calls.count("CreateSnapshot_Task") <= calls.count("RemoveSnapshot_Task")
    freezes = run.freezes("linux-vm")
    assert freezes in ([], ["frozen", "thawed"])
    assert set(drill.snapshots().values()) == {0}
    assert not {"engine.manager", "engine.mover"} & drill.processes()
