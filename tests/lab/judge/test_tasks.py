# SPDX-License-Identifier: MIT
"""How each task was read: mode, failovers with their reasons, and what its connections moved."""

from __future__ import annotations

from pathlib import Path

from tests.lab.judge.builder import BULK, TASKS, demo


def test_a_task_shows_its_mode_and_what_its_connections_moved(tmp_path: Path) -> None:
    run = demo("san")
    chosen = {"modes": ["san", "nbdssl"], "read": "cbt", "reason": "changed areas"}
    run.step("17", 890, 891, task=TASKS[0], data=chosen)
    one, other = run.report(tmp_path).to_flows()["tasks"]
    assert (one["task"], other["task"]) == tuple(sorted(TASKS))
    assert (other["modes"], other["read"], other["reason"]) == (["san", "nbdssl"], "cbt", "changed areas")
    assert (other["mode"], other["step"], other["proxy"]) == ("san", "20a", "proxy-1")
    assert other["bytes_3260"] == BULK + 800 and other["bytes_902"] == 9_300 and other["bytes_data"] == BULK // 2
    assert other["failovers"] == [] and one["read"] is None


def test_a_failover_is_shown_with_its_reason(tmp_path: Path) -> None:
    run = demo()
    told = {"mode": "hotadd", "to": "nbdssl", "code": "hotadd.refused"}
    run.step("20b", 1110, 1150, host="proxy-1", task=TASKS[0], phase="failed", text="refused", data={"mode": "hotadd"})
    run.event("note", 1151, "proxy-1", "17", TASKS[0], text="failover from hotadd to nbdssl: refused", data=told)
    run.event("note", 1152, "proxy-1", "20c", TASKS[0], text="something else", data={"pause": 1})
    report = run.report(tmp_path)
    task = next(t for t in report.to_flows()["tasks"] if t["task"] == TASKS[0])
    assert task["mode"] == "nbdssl" and task["step"] == "20c"
    assert task["failovers"] == [{**told, "reason": "failover from hotadd to nbdssl: refused"}]


def test_a_task_that_never_opened_its_disk_has_no_mode(tmp_path: Path) -> None:
    run = demo()
    run.events = [e for e in run.events if not (e["kind"] == "step" and e["step"] == "20c" and e["task"] == TASKS[1])]
    run.step("17", 890, 891, task=TASKS[1], data={"modes": ["nbdssl"], "read": "all", "reason": "first"})
    task = next(t for t in run.report(tmp_path).to_flows()["tasks"] if t["task"] == TASKS[1])
    assert task["mode"] is None and task["read"] == "all" and task["bytes_read"] is None
