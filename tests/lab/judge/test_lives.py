# SPDX-License-Identifier: MIT
"""Processes that die, or outlive the recording: what they left unsaid contradicts nobody; what a living one leaves unsaid does."""

from __future__ import annotations

from pathlib import Path

from tests.lab.judge.builder import RunBuilder, demo


def silence(run: RunBuilder, name: str, until: float | None = None) -> None:
    """The process that opened this connection (its own pid) writes no outcome, and one more event at `until` if given."""
    run.events = [e for e in run.events if not (e["kind"] == "outcome" and e.get("attempt") == name)]
    (attempt,) = [e for e in run.events if e["kind"] == "attempt" and e["attempt"] == name]
    attempt["pid"] = 4711
    if until is not None:
        run.event("note", until, attempt["host"], attempt["step"], text="still here", data={})
        run.events[-1]["pid"] = 4711


def test_outcome_of_a_killed_process_is_explained_by_its_silence(tmp_path: Path) -> None:
    run = demo()
    silence(run, "nfc-1", 1200)
    report = run.report(tmp_path)
    flow = next(f for f in report.flows if f.joined and f.joined.attempt and f.joined.attempt.id == "nfc-1")
    assert report.exit_code == 0 and flow.witnesses["event"] == "not applicable"
    assert "on proxy-1, pid 4711, ended before the outcome was known: its last event is of" in flow.reasons["event"]


def test_outcome_that_a_living_process_does_not_write_is_missed(tmp_path: Path) -> None:
    run = demo()
    silence(run, "nfc-1", 4000)
    report = run.report(tmp_path)
    assert report.exit_code == 4
    assert any("pid 4711, wrote no outcome, but lived on for" in text for text in report.inconsistent)


def test_process_killed_before_its_syn_left(tmp_path: Path) -> None:
    run = demo()
    run.connect("late", 2000, "19", "proxy-1", "esxi-1", 902, "H5", on_wire=False, logged=False, tracked=False)
    silence(run, "late")
    report = run.report(tmp_path)
    flow = next(f for f in report.flows if f.joined and f.joined.attempt and f.joined.attempt.id == "late")
    assert report.inconsistent == [] and flow.verdict.value == "not attempted"


def test_connection_of_a_process_killed_before_its_event_names_who_died(tmp_path: Path) -> None:
    run = demo("san")
    run.connect("cut", 2000, "20a", "proxy-1", "san", 3260, "H9", event=False)
    run.event("step", 1995, "proxy-1", "20a", "files-vm:2001", phase="begin", text="", data={})
    run.events[-1]["pid"] = 4711
    report = run.report(tmp_path)
    assert report.inconsistent == []
    (foreign,) = report.to_flows()["foreign"]
    assert "on proxy-1, pid 4711, died in step 20a: its last event is of" in foreign["symptom"]
    run.event("note", 4500, "proxy-1", "20a", text="still here", data={})
    run.events[-1]["pid"] = 4711
    (foreign,) = run.report(tmp_path).to_flows()["foreign"]
    assert "died" not in foreign["symptom"]


def test_process_that_outlives_the_recording_can_not_be_checked(tmp_path: Path) -> None:
    run = demo()
    for at in (4999, 5100):
        ends = ("18", "proxy-1", "vcenter", 443, "H4")
        run.connect(f"at {at}", at, *ends, on_wire=False, logged=False, tracked=False)
    report = run.report(tmp_path)
    late = [f for f in report.flows if f.joined and f.joined.attempt and f.joined.packets is None]
    assert report.inconsistent == [] and [f.verdict.value for f in late] == ["could not check"] * 2
    assert all("the recording ended" in f.reasons[w] for f in late for w in ("packets", "socket"))
