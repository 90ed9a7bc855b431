# SPDX-License-Identifier: MIT
"""The word for a whole run: what it is called when the capture has holes."""

from __future__ import annotations

from pathlib import Path

from tests.lab.judge.builder import demo


def test_lost_packets_are_told_and_the_run_is_not_consistent(tmp_path: Path) -> None:
    run = demo()
    run.capture["dropped"] = 3
    report = run.report(tmp_path)
    document = report.to_flows()
    assert (report.result, report.exit_code, document["result"]) == ("partly checked", 3, "partly checked")
    lost = ["I1", "I2", "I3", "I4", "I5", "I7"]
    assert document["capture"]["not_applicable"] == lost
    assert {document["invariants"][i] for i in lost} == {"not applicable"} and document["invariants"]["I8"] == "held"
    (problem,) = document["problems"]
    assert problem["code"] == "run.packets-lost" and "dropped 3 packets" in problem["message"]
    assert problem["message"].endswith("I1, I2, I3, I4, I5, I7")


def test_a_broken_invariant_outweighs_lost_packets(tmp_path: Path) -> None:
    run = demo()
    run.capture["dropped"] = 3
    run.connect("call", 2000, "13", "linux-guest", "backup-server", 9392, "default", result="drop", event=False)
    report = run.report(tmp_path)
    assert (report.result, report.exit_code) == ("broken", 1)
    assert [p["code"] for p in report.problems()] == ["run.packets-lost", "invariant.broken"]
