# SPDX-License-Identifier: MIT
"""The steps of a run: status, evidence of local ones, what fakes recorded between the marks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine.steps import STEPS
from lab.judge.marks import step_marks
from lab.judge.steps import StepRecord
from tests.lab.judge.builder import RunBuilder, demo, utc


def steps(run: RunBuilder, tmp_path: Path) -> dict[str, StepRecord]:
    return {s.step.id: s for s in run.report(tmp_path).steps}


def test_every_step_in_order_with_its_status(tmp_path: Path) -> None:
    run = demo()
    report = run.report(tmp_path)
    assert [s.step.id for s in report.steps] == [s.id for s in STEPS]
    status = {s.step.id: s.status for s in report.steps}
    assert {k for k, v in status.items() if v == "done"} == {
        "1", "2", "3", "4", "5a", "5b", "6", "7", "8", "12", "13", "15", "16", "17", "18", "19", "20c", "21", "22",
    }  # fmt: skip
    assert status["9"] == "skipped" and status["20a"] == "not reached"


def test_local_steps_have_process_or_fake_evidence(tmp_path: Path) -> None:
    found = steps(demo(), tmp_path)
    for step in ("2", "3", "4", "12", "17"):
        assert found[step].flows == [] and found[step].evidence[0]["source"] == "process"
    assert {"source": "guest linux-vm", "text": "frozen / by fsfreeze"} in found["13"].evidence
    assert {"source": "guest linux-vm", "text": "thawed / by fsfreeze"} in found["16"].evidence
    assert any("CreateSnapshot_Task" in e["text"] for e in found["15"].evidence)
    assert any("RemoveSnapshot_Task" in e["text"] for e in found["22"].evidence)


def test_used_connections_belong_to_both_steps(tmp_path: Path) -> None:
    found = steps(demo(), tmp_path)
    assert found["20c"].flows == found["19"].flows != []
    assert found["21"].flows == found["7"].flows and set(found["15"].flows) == set(found["8"].flows)


def test_failed_and_interrupted_steps(tmp_path: Path) -> None:
    run = RunBuilder()
    run.connect("ts", 100, "5a", "backup-server", "repository-1", 6162, "M4", result="drop")
    run.counters["M4"] += 2
    run.step("6", 300, 400, phase="failed", text="6162 open, 2500-3300 blocked")
    run.step("7", 500, None)
    found = steps(run, tmp_path)
    assert found["5a"].status == "failed"  # an attempt without a mark, and it did not open
    assert (found["6"].status, found["6"].text) == ("failed", "6162 open, 2500-3300 blocked")
    assert found["7"].status == "interrupted" and found["7"].end is None
    assert found["8"].status == "not reached"


def test_one_failed_vm_makes_the_step_failed(tmp_path: Path) -> None:
    run = demo()
    run.step("22", 3300, 3310, phase="failed", text="locked", task="third-vm")
    assert steps(run, tmp_path)["22"].status == "failed"


def test_marks_of_several_tasks_and_processes_stay_apart() -> None:
    run = RunBuilder()
    run.step("20c", 100, 300, host="proxy-1", task="a")
    run.step("20c", 150, 200, host="proxy-1", task="b")
    run.event("step", 400, "proxy-1", "20c", "a", phase="failed", text="late", data={})
    found = step_marks(run.events)["20c"]
    assert [(m.task, m.begin, m.end) for m in found] == [
        ("a", utc(100), utc(300)),
        ("b", utc(150), utc(200)),
        ("a", utc(400), utc(400)),
    ]
    assert found[0].holds(utc(200)) and not found[1].holds(utc(201)) and found[1].overlaps(utc(190), utc(900))


def test_scapy_stays_in_its_own_process() -> None:
    code = (
        "import sys, lab.judge.judge, lab.cli.flows, lab.cli.runs, lab.cli.pcap, lab.observe.recorder; "
        "sys.exit(any(m.split('.')[0] == 'scapy' for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
