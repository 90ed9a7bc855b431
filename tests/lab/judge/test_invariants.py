# SPDX-License-Identifier: MIT
"""Each invariant held, broken on purpose, and not applicable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.steps import RESTORE_STEPS
from firewall_rules.load import load_policy
from firewall_rules.model import Rule
from lab.judge.invariants import BROKEN, HELD, NOT_APPLICABLE, Invariant
from lab.judge.report import build
from tests.lab.judge.builder import BULK, IP, READ, TASKS, RunBuilder, demo, utc
from tests.lab.observe.wire import ping, udp

Break = Callable[[RunBuilder], None]


def state(run: RunBuilder, name: str, tmp_path: Path) -> Invariant:
    report = run.report(tmp_path)
    (found,) = [i for i in report.invariants if i.id == name]
    assert found.source and found.reason
    if found.state == BROKEN:
        assert report.exit_code in (1, 3, 4)
        assert any(p["code"] == "invariant.broken" and p["message"].startswith(name) for p in report.problems())
    return found


def move(run: RunBuilder, step: str, by: float, task: str | None = None) -> None:
    """Moves the marks of a step."""
    for event in run.events:
        if event["kind"] == "step" and event["step"] == step and task in (None, event["task"]):
            event["utc"] += utc(by) - utc(0)


def attempt_time(run: RunBuilder, name: str, at: float, step: str, port: int, dst: str, rule: str) -> None:
    run.connect(name, at, step, "proxy-1", dst, port, rule, task="linux-vm:2000")


# --- I1


def early_ssh(run: RunBuilder) -> None:
    run.connect("early", 300, "13", "backup-server", "linux-guest", 22, "G10")


def early_ping(run: RunBuilder) -> None:
    run.wire.frame(utc(200), ping(IP["backup-server"], IP["linux-guest"]), out=False)


def early_in_guest_network(run: RunBuilder) -> None:
    run.wire.forward(utc(200), udp(IP["backup-server"], 1, "10.77.10.77", 53))


def late_mark(run: RunBuilder) -> None:
    move(run, "9", 200)
    move(run, "12", 200)


# --- I2


def guest_calls(run: RunBuilder) -> None:
    run.connect("back", 3500, "-", "linux-guest", "backup-server", 9392, "default", result="drop", event=False)
    run.counters["default"] += 2
    run.log += [{**run.log[-1], "utc": utc(3500 + w)} for w in (1000, 3000)]


def esxi_datagram(run: RunBuilder) -> None:
    run.wire.frame(utc(3500), udp(IP["esxi-1"], 902, IP["proxy-1"], 902), out=False)


def vcenter_calls(run: RunBuilder) -> None:
    run.connect("back", 3500, "-", "vcenter", "repository-1", 6162, "default", result="reset", event=False)


# --- I3


def mover_link_before_rules(run: RunBuilder) -> None:
    run.connect("data-0b", 190, "7", "proxy-1", "repository-1", 2520, "D1", task="linux-vm:2000")


def ticket_before_snapshot(run: RunBuilder) -> None:
    run.connect("api-early", 450, "18", "proxy-1", "vcenter", 443, "H4")


def nfc_before_ticket_in_one_task(run: RunBuilder) -> None:
    attempt_time(run, "nfc-early", 960, "19", 902, "esxi-1", "H5")


def commit_before_read(run: RunBuilder) -> None:
    for task in ("linux-vm",):
        move(run, "22", -2100, task)
    run.say("vcenter", 915, 10, 10, use="22")


def snapshot_without_payload(run: RunBuilder) -> None:
    run.step("15", 800, 805, task="files-vm")


# --- I4


def no_ticket(run: RunBuilder) -> None:
    assert run.gateway is not None
    run.gateway = [e for e in run.gateway if e["method"] != "NfcGetVmFiles"]


def other_address(run: RunBuilder) -> None:
    for entry in run.gateway or []:
        if entry["method"] == "NfcGetVmFiles":
            entry["detail"]["address"] = IP["esxi-2"]


def refused_ticket(run: RunBuilder) -> None:
    for entry in run.gateway or []:
        if entry["method"] == "NfcGetVmFiles":
            entry["fault"] = "NotAuthenticated"


def late_ticket(run: RunBuilder) -> None:
    for entry in run.gateway or []:
        if entry["method"] == "NfcGetVmFiles":
            entry["utc"] = utc(1500)


def ticket_of_another_proxy(run: RunBuilder) -> None:
    for entry in run.gateway or []:
        if entry["method"] == "NfcGetVmFiles":
            entry["client"] = [IP["proxy-2"], 1]


def one_ticket_for_two(run: RunBuilder) -> None:
    attempt_time(run, "nfc-again", 1700, "19", 902, "esxi-1", "H5")


# --- I5: each takes a healthy run of one mode


def san_over_902(run: RunBuilder) -> None:
    run.bulk("nfc-0", 1650, BULK)


def san_without_packets(run: RunBuilder) -> None:
    """The bulk is neither on 3260 nor on 902, but it came to the repository."""
    run.said = [s for s in run.said if s[1] != "session-1"]


def hotadd_over_902(run: RunBuilder) -> None:
    run.bulk("nfc-1", 1650, BULK)


def hotadd_over_3260(run: RunBuilder) -> None:
    run.connect("secret", 1300, "20b", "proxy-1", "san", 3260, "H9", task=TASKS[0])
    run.bulk("secret", 1320, BULK)


def hotadd_without_attach(run: RunBuilder) -> None:
    run.gateway = [e for e in run.gateway or [] if not (e["detail"] or {}).get("attached")]


def attached_for_another_proxy(run: RunBuilder) -> None:
    for entry in run.gateway or []:
        if entry["method"] == "ReconfigVM_Task":
            entry["client"] = [IP["proxy-2"], 1]


def attach_failed(run: RunBuilder) -> None:
    for entry in run.gateway or []:
        if (entry["detail"] or {}).get("attached"):
            entry["detail"]["state"] = "error"


def network_over_3260(run: RunBuilder) -> None:
    run.connect("secret", 1300, "20a", "proxy-1", "san", 3260, "H9", task=TASKS[0])
    run.bulk("secret", 1320, BULK)


def network_without_packets(run: RunBuilder) -> None:
    run.said = [s for s in run.said if not (s[1] == "nfc-0" and s[3] > 10_000)]


def nobodys_bulk(run: RunBuilder) -> None:
    run.connect("nobody", 1300, "-", "proxy-2", "esxi-1", 902, "H5", event=False)
    run.bulk("nobody", 1320, BULK)


# --- I6


def guest_operation(run: RunBuilder) -> None:
    run.soap(700, "backup-server", "StartProgramInGuest", guest_operation=1, vm="linux-vm", fault="x")


# --- I7


def too_few_movers(run: RunBuilder) -> None:
    run.step("7", 320, 325, host="proxy-1", task="files-vm:2001")


def too_few_data_links(run: RunBuilder) -> None:
    run.connect("control-x", 290, "6", "backup-server", "proxy-1", 2505, "M5", task="files-vm:2001")
    run.step("21", 1250, 1900, host="proxy-1", task="files-vm:2001")


def shared_mover(run: RunBuilder) -> None:
    run.connect("control-x", 290, "6", "backup-server", "proxy-1", 2500, "M5", task="files-vm:2001")
    run.say("control-x", 1500, 10, 10)
    run.say("control-source-0", 1600, 10, 10)


# --- I8


def snapshot_left(run: RunBuilder) -> None:
    run.gateway = [e for e in run.gateway or [] if (e["detail"] or {}).get("task") != "task-r1"]


def removal_failed(run: RunBuilder) -> None:
    for entry in run.gateway or []:
        if (entry["detail"] or {}).get("task") == "task-r0" and entry["detail"]["state"] == "success":
            entry["detail"]["state"] = "error"


def snapshot_early(run: RunBuilder) -> None:
    for entry in run.gateway or []:
        if (entry["detail"] or {}).get("task") == "task-0":
            entry["utc"] -= utc(100) - utc(0)


def removed_early(run: RunBuilder) -> None:
    for entry in run.gateway or []:
        if (entry["detail"] or {}).get("task") == "task-r1":
            entry["utc"] -= utc(1500) - utc(0)


def removed_early_while_the_other_commits(run: RunBuilder) -> None:
    """The other VM's step 22 has begun; this one's has not."""
    move(run, "22", -1500, "linux-vm")
    for entry in run.gateway or []:
        if (entry["detail"] or {}).get("task") in ("task-r0", "task-r1"):
            entry["utc"] -= utc(1400) - utc(0)


def requested_early_after_the_other(run: RunBuilder) -> None:
    """The other VM's step 15 has begun; this one's has not."""
    for entry in run.gateway or []:
        if (entry["detail"] or {}).get("task") == "task-1":
            entry["utc"] -= utc(90) - utc(0)


def skipped_commit(run: RunBuilder) -> None:
    for event in run.events:
        if event["kind"] == "step" and event["step"] == "22" and event["task"] == "files-vm":
            event["phase"] = "skipped"


def orphan_reported_for_the_other_vm(run: RunBuilder) -> None:
    snapshot_left(run)
    run.event("note", 3150, "backup-server", "22", "linux-vm", text="snapshot-1 and files-vm stay", data={})


def disk_left_attached(run: RunBuilder) -> None:
    run.gateway = [e for e in run.gateway or [] if not (e["detail"] or {}).get("detached")]


# --- I9


def frozen_during_hotadd(run: RunBuilder) -> None:
    """Nothing but the marks of 20b shows that the disk is read."""
    move(run, "20b", -590, TASKS[0])
    for event in run.events:
        if event["step"] in ("18", "19") and event["task"] == TASKS[0]:
            event["task"] = TASKS[1]


def frozen_during_a_san_session(run: RunBuilder) -> None:
    for event in run.events:
        if event["step"] in ("18", "19") and event["task"] == TASKS[0]:
            event["task"] = TASKS[1]
    run.freezes.clear()
    run.freeze(550, 1300)


def frozen_before_its_own_step_13(run: RunBuilder) -> None:
    """The step 13 that has begun is another VM's."""
    for event in run.events:
        if event["kind"] == "step" and event["step"] == "13":
            event["task"] = "files-vm"


def freed_by_the_step_16_of_another_vm(run: RunBuilder) -> None:
    frozen_after_release(run)
    run.step("16", 690, 900, task="files-vm")


def never_thawed(run: RunBuilder) -> None:
    run.freezes = run.freezes[:1]


def frozen_while_read(run: RunBuilder) -> None:
    run.freezes.clear()
    run.freeze(550, 1300)


def frozen_after_release(run: RunBuilder) -> None:
    run.freezes.clear()
    run.freeze(550, 700)


def frozen_before_anything(run: RunBuilder) -> None:
    run.freezes.clear()
    run.freeze(450, 640)


# --- I10


def loopback_rule(run: RunBuilder) -> None:
    rule = {"id": "C15", "row": "C15", "from": "backup_server", "to": "backup_server", "ports": 9392}
    run.policy = run.policy.model_copy(update={"rules": (*run.policy.rules, Rule.model_validate(rule))})


def loopback_rule_without_row(run: RunBuilder) -> None:
    rule = {"id": "odd", "from": "backup_server", "to": "backup_server", "ports": 9393}
    run.policy = run.policy.model_copy(update={"rules": (*run.policy.rules, Rule.model_validate(rule))})


def loopback_counter(run: RunBuilder) -> None:
    run.counters["C15"] = 1


BREAKS: list[tuple[str, Break]] = [
    ("I1", early_ssh),
    ("I1", early_ping),
    ("I1", early_in_guest_network),
    ("I1", late_mark),
    ("I2", guest_calls),
    ("I2", esxi_datagram),
    ("I2", vcenter_calls),
    ("I3", mover_link_before_rules),
    ("I3", ticket_before_snapshot),
    ("I3", nfc_before_ticket_in_one_task),
    ("I3", commit_before_read),
    ("I3", snapshot_without_payload),
    ("I4", no_ticket),
    ("I4", other_address),
    ("I4", refused_ticket),
    ("I4", late_ticket),
    ("I4", ticket_of_another_proxy),
    ("I4", one_ticket_for_two),
    ("I5", network_over_3260),
    ("I5", network_without_packets),
    ("I5", nobodys_bulk),
    ("I6", guest_operation),
    ("I7", too_few_movers),
    ("I7", too_few_data_links),
    ("I7", shared_mover),
    ("I8", snapshot_left),
    ("I8", removal_failed),
    ("I8", removed_early_while_the_other_commits),
    ("I8", requested_early_after_the_other),
    ("I8", skipped_commit),
    ("I8", orphan_reported_for_the_other_vm),
    ("I8", snapshot_early),
    ("I8", removed_early),
    ("I9", frozen_before_its_own_step_13),
    ("I9", freed_by_the_step_16_of_another_vm),
    ("I9", never_thawed),
    ("I9", frozen_while_read),
    ("I9", frozen_after_release),
    ("I9", frozen_before_anything),
    ("I10", loopback_rule),
    ("I10", loopback_rule_without_row),
    ("I10", loopback_counter),
]


@pytest.mark.parametrize(("name", "harm"), BREAKS, ids=[f"{n}-{h.__name__}" for n, h in BREAKS])
def test_broken_on_purpose(tmp_path: Path, name: str, harm: Break) -> None:
    run = demo()
    harm(run)
    found = state(run, name, tmp_path)
    assert found.state == BROKEN, found


BREAKS_IN_MODE: list[tuple[str, str, Break]] = [
    ("san", "I5", san_over_902),
    ("san", "I5", san_without_packets),
    ("san", "I5", nobodys_bulk),
    ("hotadd", "I5", hotadd_over_902),
    ("hotadd", "I5", hotadd_over_3260),
    ("hotadd", "I5", hotadd_without_attach),
    ("hotadd", "I5", attached_for_another_proxy),
    ("hotadd", "I5", attach_failed),
    ("hotadd", "I8", disk_left_attached),
    ("hotadd", "I9", frozen_during_hotadd),
    ("san", "I9", frozen_during_a_san_session),
]


@pytest.mark.parametrize(
    ("mode", "name", "harm"), BREAKS_IN_MODE, ids=[f"{m}-{h.__name__}" for m, _, h in BREAKS_IN_MODE]
)
def test_broken_on_purpose_in_a_mode(tmp_path: Path, mode: str, name: str, harm: Break) -> None:
    run = demo(mode)
    harm(run)
    found = state(run, name, tmp_path)
    assert found.state == BROKEN, found


def test_an_announced_failover_is_taken_into_account(tmp_path: Path) -> None:
    run = demo()
    task = TASKS[0]
    run.step(
        "20a", 1110, 1150, host="proxy-1", task=task, phase="failed", text="does not see the LUN", data={"mode": "san"}
    )
    told = {"mode": "san", "to": "nbdssl", "code": "san.not-visible"}
    run.event("note", 1151, "proxy-1", "17", task, text="failover from san to nbdssl: does not see the LUN", data=told)
    run.connect("discovery", 1112, "20a", "proxy-1", "san", 3260, "H9", task=task)
    run.say("discovery", 1120, 300, 300)
    found = state(run, "I5", tmp_path)
    assert found.state == HELD, found
    assert f"{task} Network: 300 bytes on 3260" in found.reason


def test_a_failed_read_owes_no_bulk(tmp_path: Path) -> None:
    run = demo("san")
    for event in run.events:
        if event["kind"] == "step" and event["step"] == "20a" and event["task"] == TASKS[1] and event["phase"] == "end":
            event["phase"] = "failed"
    san_without_packets(run)
    assert state(run, "I5", tmp_path).state == HELD


def test_an_orphan_reported_by_its_task_is_no_break(tmp_path: Path) -> None:
    run = demo()
    snapshot_left(run)
    run.event("note", 3150, "backup-server", "22", "files-vm", text="a snapshot may stay", data={})
    assert state(run, "I8", tmp_path).state == HELD


@pytest.mark.parametrize("mode", READ)
def test_all_hold_in_a_healthy_run(tmp_path: Path, mode: str) -> None:
    report = demo(mode).report(tmp_path)
    assert report.exit_code == 0, report.problems()
    assert {i.id: i.state for i in report.invariants} == dict.fromkeys(
        ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10"), HELD
    )


def test_reported_orphan_is_no_break(tmp_path: Path) -> None:
    run = demo()
    snapshot_left(run)
    run.event("note", 3150, "backup-server", "22", text="files-vm: snapshot snapshot-1 stays", data={"vm": "files-vm"})
    assert state(run, "I8", tmp_path).state == HELD


def test_rebuilt_vcenter_gives_new_references(tmp_path: Path) -> None:
    run = demo()
    for entry in run.gateway or []:
        if (entry["detail"] or {}).get("task") == "task-r0":
            entry["detail"]["snapshot"] = "snapshot-77"
    assert state(run, "I8", tmp_path).state == HELD


def test_remove_all_takes_every_snapshot(tmp_path: Path) -> None:
    run = demo()
    for entry in run.gateway or []:
        if (entry["detail"] or {}).get("task") == "task-r0":
            entry["method"], entry["detail"]["snapshot"] = "RemoveAllSnapshots_Task", "all"
    assert state(run, "I8", tmp_path).state == HELD


def test_one_vm_commits_while_the_other_is_read(tmp_path: Path) -> None:
    run = demo()
    run.events = [e for e in run.events if not (e["kind"] == "step" and e["step"] == "22" and e["task"] == "files-vm")]
    run.step("22", 2000, 2030, task="files-vm")
    run.say("vcenter", 2005, 10, 10)
    run.step("20c", 2100, 2200, host="proxy-1", task="linux-vm:2000")
    run.say("nfc-0", 2110, 10, 10)
    assert state(run, "I3", tmp_path).state == HELD


def test_guest_of_another_vm_may_be_frozen_while_this_one_is_read(tmp_path: Path) -> None:
    run = demo()
    for event in run.events:
        if event["task"] == "linux-vm:2000" and event["step"] in ("18", "19"):
            event["task"] = "files-vm:2001"
    run.freezes.clear()
    run.freeze(550, 640)
    assert state(run, "I9", tmp_path).state == HELD


def test_not_applicable_says_why(tmp_path: Path) -> None:
    run = RunBuilder()
    run.connect("console", 10, "1", "console", "backup-server", 9392, "C1")
    report = run.report(tmp_path)
    by_id = {i.id: i for i in report.invariants}
    assert {i for i, v in by_id.items() if v.state == NOT_APPLICABLE} == {"I3", "I4", "I5", "I6", "I7", "I8", "I9"}
    assert by_id["I8"].reason == "no snapshot was requested"
    assert by_id["I4"].reason == "no proxy sent a SYN to 902"
    assert report.exit_code == 0


def test_without_journal_it_can_not_be_said(tmp_path: Path) -> None:
    run = demo()
    run.gateway = None
    report = run.report(tmp_path)
    by_id = {i.id: i.state for i in report.invariants}
    assert (by_id["I4"], by_id["I8"]) == (NOT_APPLICABLE, NOT_APPLICABLE)


def test_a_vm_whose_point_is_refused_at_21_has_no_mover_of_its_own(tmp_path: Path) -> None:
    run = demo()
    run.step("21", 1250, 1300, host="backup-server", task="files-vm")
    assert {i.id: i.state for i in run.report(tmp_path).invariants}["I7"] == HELD


def test_holes_in_the_capture_prove_nothing(tmp_path: Path) -> None:
    run = demo()
    run.capture["flushed"] = False
    report = run.report(tmp_path)
    by_id = {i.id: i for i in report.invariants}
    assert by_id["I1"].state == by_id["I2"].state == by_id["I7"].state == NOT_APPLICABLE
    early_ssh(run)
    again = {i.id: i.state for i in run.report(tmp_path).invariants}
    assert again["I1"] == BROKEN  # what was seen stays seen


def test_answers_are_no_calls(tmp_path: Path) -> None:
    run = demo()
    run.wire.forward(utc(3500), udp(IP["proxy-1"], 5000, IP["vcenter"], 53))
    run.wire.forward(utc(3501), udp(IP["vcenter"], 53, IP["proxy-1"], 5000))
    assert state(run, "I2", tmp_path).state == HELD


def test_restore_has_no_job_steps(tmp_path: Path) -> None:
    run = RunBuilder(kind="restore")
    run.connect("r1", 10, "r1", "console", "backup-server", 9392, "C1")
    run.connect("r2", 100, "r2", "backup-server", "repository-1", 6162, "M4")
    run.connect("r2b", 150, "r2", "backup-server", "repository-1", 2500, "M5")
    run.connect("r3", 200, "r3", "console", "repository-1", 2501, "R1")
    run.say("r3", 220, 100, 60_000)
    report = run.report(tmp_path)
    assert report.exit_code == 0, report.problems()
    assert [s.step.id for s in report.steps] == [s.id for s in RESTORE_STEPS]
    assert [s.step.id for s in report.steps if s.status == "done"] == ["r1", "r2", "r3"]
    assert {i.id for i in report.invariants if i.state == HELD} == {"I1", "I2", "I10"}


def test_reverse_direction_needs_its_own_rule(tmp_path: Path) -> None:
    run = demo()
    run.policy = load_policy("both-directions")
    run.connect("back", 320, "7", "repository-1", "proxy-1", 2530, "D2", task="files-vm:2000")
    report = run.report(tmp_path)
    flow = next(f for f in report.flows if f.attempted and f.row == "D2")
    assert flow.consistent and flow.verdict.value == "allowed"


# --- I6 with a Windows guest, which the shipped topology does not run


def over_vix(tmp_path: Path, run: RunBuilder) -> Invariant:
    evidence = run.evidence(tmp_path)
    world = evidence.world
    guests = {**world.vm_of_guest, "win-guest": "win-vm"}
    evidence.world = replace(world, vm_of_guest=guests, vms=(*world.vms, "win-vm"))
    return next(i for i in build(evidence).invariants if i.id == "I6")


def vix_run(*, network: bool) -> RunBuilder:
    run = demo()
    if network:
        run.connect("smb", 446, "10", "backup-server", "win-guest", 445, "default", result="drop", task="win-vm")
        run.counters["default"] += 2
        run.log += [{**run.log[-1], "utc": utc(446 + wait)} for wait in (1000, 3000)]
        run.step("10", 446, 447, task="win-vm", phase="failed")
    run.step("11", 448, 460, task="win-vm")
    run.soap(450, "backup-server", "StartProgramInGuest", guest_operation=1, vm="win-vm")
    return run


@pytest.mark.parametrize("network", [True, False])
def test_vix_leaves_the_guests_interface_alone(tmp_path: Path, network: bool) -> None:
    found = over_vix(tmp_path, vix_run(network=network))
    assert found.state == HELD and "1 guests over VIX" in found.reason, found


def test_vix_with_a_connection_that_reaches_the_guest_is_broken(tmp_path: Path) -> None:
    run = vix_run(network=True)
    run.connect("late", 900, "11", "backup-server", "win-guest", 445, "default", task="win-vm")
    found = over_vix(tmp_path, run)
    assert found.state == BROKEN and "reached the guest after step 11" in found.reason


def test_vix_alone_allows_not_even_an_attempt(tmp_path: Path) -> None:
    run = vix_run(network=False)
    run.connect("try", 455, "11", "backup-server", "win-guest", 135, "default", result="drop", task="win-vm")
    found = over_vix(tmp_path, run)
    assert found.state == BROKEN and "although only VIX was asked for" in found.reason
