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


def test_packets_that_were_lost_contradict_nobody(tmp_path: Path) -> None:
    run = demo()
    run.connect("nfc-x", 2000, "19", "proxy-1", "esxi-1", 902, "H5", result="silent", task="files-vm:2000")
    for event in run.events:
        if event.get("attempt") == "nfc-x" and event["kind"] == "outcome":
            event |= {"outcome": "open", "code": None}
    (tracking,) = [t for t in run.tracking if t["states"] == ["SYN_SENT"]]
    tracking["states"] = ["SYN_SENT", "SYN_RECV", "ESTABLISHED"]
    assert run.report(tmp_path).result == "inconsistent"
    run.capture["dropped"] = 3  # the SYN-ACK among them
    report = run.report(tmp_path)
    flow = next(f for f in report.flows if f.joined and f.joined.attempt and f.joined.attempt.id == "nfc-x")
    assert report.result == "partly checked" and flow.verdict.value == "could not check"
    assert (flow.witnesses["event"], flow.witnesses["packets"]) == ("allowed", "not applicable")


def test_a_contradiction_that_packets_prove_stays_one(tmp_path: Path) -> None:
    run = demo()
    run.capture["dropped"] = 3
    for event in run.events:
        if event.get("attempt") == "nfc-1" and event["kind"] == "outcome":
            event |= {"outcome": "refused", "code": "connect.refused"}
    assert run.report(tmp_path).result == "inconsistent"
