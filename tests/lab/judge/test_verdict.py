# SPDX-License-Identifier: MIT
"""Every verdict, and every witness contradicting the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from firewall_rules.load import load_matrix
from firewall_rules.model import Action
from firewall_rules.overlay import of_row
from lab.judge.report import Report, combine
from lab.judge.verdict import Flow
from tests.lab.judge.builder import BULK, IP, RunBuilder, demo, utc
from tests.lab.observe.wire import MS, udp

WITNESSES = {"event", "counter", "packets", "socket"}


def blocked(result: str, action: Action) -> RunBuilder:
    """One attempt of step 19 that a live block stops."""
    run = RunBuilder()
    block = of_row("block-1", load_matrix("12.3").row("H5"), action)
    run.overlays = [{"utc": utc(0), "overlays": [block.model_dump(mode="json", by_alias=True)]}]
    run.connect("nfc", 100, "19", "proxy-1", "esxi-1", 902, "block-1", result=result)
    return run


def only(report: Report) -> Flow:
    (flow,) = [f for f in report.flows if f.attempted]
    return flow


def test_healthy_run_is_consistent_and_complete(tmp_path: Path) -> None:
    report = demo().report(tmp_path)
    assert report.problems() == [] and report.exit_code == 0 and report.checked == 15
    flows = report.to_flows()["flows"]
    assert all(set(f["witnesses"]) == WITNESSES and None not in f["witnesses"].values() for f in flows)
    assert {f["verdict"] for f in flows} == {"allowed", "not attempted"}
    nfc = next(f for f in flows if f["step"] == "19")
    assert (nfc["initiator"], nfc["responder"], nfc["port"], nfc["rule"], nfc["row"]) == (
        "proxy-1",
        "esxi-1",
        902,
        "H5",
        "H5",
    )
    assert nfc["steps"] == ["19", "20c"] and nfc["payload_received"] == BULK + 300
    assert nfc["bytes"] > 50_500 and nfc["bytes_source"] == "connection tracking"
    json.dumps(report.to_flows()), json.dumps(report.to_report())


@pytest.mark.parametrize(
    ("result", "action", "verdict", "by"),
    [
        ("drop", Action.DROP, "timed out", "firewall"),
        ("reset", Action.RESET, "refused", "firewall"),
        ("prohibit", Action.PROHIBIT, "prohibited", "firewall"),
    ],
)
def test_blocked_by_the_firewall(tmp_path: Path, result: str, action: Action, verdict: str, by: str) -> None:
    report = blocked(result, action).report(tmp_path)
    flow = only(report)
    assert (flow.verdict.value, flow.decided_by, flow.rule, flow.row) == (verdict, by, "block-1", "H5")
    assert flow.predicted == verdict
    assert flow.witnesses == {"event": verdict, "counter": verdict, "packets": verdict, "socket": "not applicable"}
    assert flow.reasons["socket"] and report.exit_code in (0, 1) and not report.inconsistent


def test_refused_by_the_responder_is_allowed_on_the_path(tmp_path: Path) -> None:
    run = RunBuilder()
    run.connect("nfc", 100, "19", "proxy-1", "esxi-1", 902, "H5", result="closed")
    flow = only(run.report(tmp_path))
    assert (flow.verdict.value, flow.decided_by, flow.predicted) == ("refused", "responder", "allowed")
    assert flow.witnesses == {"event": "refused", "counter": "allowed", "packets": "refused", "socket": "refused"}
    assert flow.consistent


def test_silent_responder_is_told_from_a_drop(tmp_path: Path) -> None:
    run = RunBuilder()
    run.connect("nfc", 100, "19", "proxy-1", "esxi-1", 902, "H5", result="silent")
    flow = only(run.report(tmp_path))
    assert (flow.verdict.value, flow.decided_by, flow.witnesses["counter"]) == ("timed out", "nobody", "allowed")
    assert flow.consistent


def test_row_without_attempt_appears_once(tmp_path: Path) -> None:
    report = demo().report(tmp_path)
    rest = [f for f in report.flows if not f.attempted]
    assert len({f.row for f in rest}) == len(rest) and {"D2", "H9"} <= {f.row for f in rest}
    assert not {f.row for f in rest} & {f.row for f in report.flows if f.attempted}
    d2 = next(f for f in rest if f.row == "D2")
    assert d2.predicted == "timed out" and set(d2.witnesses.values()) == {"not attempted"}


def test_row_without_attempt_whose_hosts_differ(tmp_path: Path) -> None:
    run = RunBuilder()
    row = of_row("block-1", load_matrix("12.3").row("H5"), Action.DROP)
    block = row.model_copy(update={"initiators": ("proxy-1",), "responders": ("esxi-1",)})
    run.overlays = [{"utc": utc(0), "overlays": [block.model_dump(mode="json", by_alias=True)]}]
    (h5,) = [f for f in run.report(tmp_path).flows if f.row == "H5"]
    assert (h5.initiator, h5.predicted) == ("proxy-1, proxy-2", "could not check")
    assert h5.reasons["predicted"] == "it differs between the hosts of these roles"


def test_incomplete_capture_can_not_be_checked(tmp_path: Path) -> None:
    run = RunBuilder()
    run.capture["dropped"] = 3
    run.connect("nfc", 100, "19", "proxy-1", "esxi-1", 902, "H5", on_wire=False)
    report = run.report(tmp_path)
    flow = only(report)
    assert flow.verdict.value == "could not check" and "dropped 3" in flow.reasons["packets"]
    assert report.exit_code == 3 and report.result == "nothing checked"


def test_nothing_checked_has_its_own_exit_code(tmp_path: Path) -> None:
    report = RunBuilder().report(tmp_path)
    assert report.exit_code == 3 and report.problems()[0]["code"] == "run.nothing-checked"


def test_attempt_to_oneself_is_local_and_no_flow(tmp_path: Path) -> None:
    run = demo()
    ends: dict[str, Any] = {"local": ["127.0.0.1", 50000], "remote": ["127.0.0.1", 9392], "target": "backup-server"}
    run.event("attempt", 52, "backup-server", "4", attempt="lo", **ends)
    run.event("outcome", 53, "backup-server", "4", attempt="lo", outcome="open", code=None, ms=1)
    report = run.report(tmp_path)
    assert report.exit_code == 0 and not [f for f in report.flows if f.attempted and f.port == 9392 and f.step == "4"]
    step4 = next(s for s in report.steps if s.step.id == "4")
    assert any("loopback" in e["text"] for e in step4.evidence)


# --- one witness against the others --------------------------------------------------------------------------------


def expect_inconsistent(run: RunBuilder, tmp_path: Path, text: str) -> Report:
    report = run.report(tmp_path)
    assert report.exit_code == 4 and report.result == "inconsistent"
    assert any(text in problem for problem in report.inconsistent), report.inconsistent
    return report


def test_event_disagrees(tmp_path: Path) -> None:
    run = demo()
    next(e for e in run.events if e["kind"] == "outcome" and e["attempt"] == "nfc-0")["outcome"] = "refused"
    expect_inconsistent(run, tmp_path, "the engine says refused, the packets show allowed")


def test_event_without_packets(tmp_path: Path) -> None:
    run = demo()
    run.connect("ghost", 2000, "8", "backup-server", "vcenter", 443, "H1", on_wire=False, logged=False, tracked=False)
    expect_inconsistent(run, tmp_path, "the packets show not attempted")


def test_prediction_disagrees(tmp_path: Path) -> None:
    run = demo()
    run.policy = run.policy.without("H4")
    report = expect_inconsistent(run, tmp_path, "predicted timed out, the packets show allowed")
    assert any("was not in force" in p for p in report.inconsistent)


def test_packets_disagree(tmp_path: Path) -> None:
    run = demo()
    run.connect("nfc-9", 2000, "19", "proxy-1", "esxi-1", 902, "H5", result="reset", task="linux-vm:2000")
    expect_inconsistent(run, tmp_path, "rule H5 says allowed, the packets show refused")


def test_log_lacks_a_syn(tmp_path: Path) -> None:
    run = demo()
    run.connect("more", 2000, "18", "proxy-1", "vcenter", 443, "H4", logged=False)
    expect_inconsistent(run, tmp_path, "a SYN that no rule logged")


def test_log_has_a_syn_that_the_capture_lacks(tmp_path: Path) -> None:
    run = demo()
    run.log.append(run.record(2000, "H4", IP["proxy-1"], 55555, IP["vcenter"], 443))
    run.counters["H4"] += 1
    expect_inconsistent(run, tmp_path, "which the capture does not have")


def test_counter_differs_from_log(tmp_path: Path) -> None:
    run = demo()
    run.counters["H5"] += 1
    expect_inconsistent(run, tmp_path, "rule H5 counted 3 packets and logged 2")
    run.counters["H5"] -= 2
    expect_inconsistent(run, tmp_path, "rule H5 counted 1 packets and logged 2")


def test_counter_of_a_row_that_nobody_attempted(tmp_path: Path) -> None:
    run = demo()
    run.counters["H9"] = 2
    expect_inconsistent(run, tmp_path, "nobody attempted row H9")


def test_lost_log_records_are_no_disagreement(tmp_path: Path) -> None:
    run = demo()
    run.log_lost = 5
    run.connect("more", 1045, "18", "proxy-1", "vcenter", 443, "H4", logged=False)
    report = run.report(tmp_path)
    flow = next(f for f in report.flows if f.joined and f.joined.attempt and f.joined.attempt.id == "more")
    assert flow.witnesses["counter"] == "not applicable" and "lost 5" in flow.reasons["counter"]
    assert not report.inconsistent


def test_socket_disagrees(tmp_path: Path) -> None:
    run = demo()
    tracking = run.links["nfc-0"].tracking
    assert tracking is not None
    tracking["states"] = ["SYN_SENT", "CLOSE"]
    expect_inconsistent(run, tmp_path, "connection tracking says refused")


def test_mark_of_another_rule(tmp_path: Path) -> None:
    run = demo()
    first, second = run.links["nfc-0"].tracking, run.links["api-0"].tracking
    assert first is not None and second is not None
    first["mark"] = second["mark"]
    expect_inconsistent(run, tmp_path, "carries the mark of rule H4, the log names H5")


def test_socket_without_record(tmp_path: Path) -> None:
    run = demo()
    run.tracking.remove(run.links["nfc-0"].tracking or {})
    expect_inconsistent(run, tmp_path, "the kernel tracked no such connection")


def test_tracked_although_blocked(tmp_path: Path) -> None:
    run = blocked("drop", Action.DROP)
    other = demo().links["nfc-0"].tracking or {}
    key = run.links["nfc"].talk.ends
    run.tracking.append({**other, "src": key[0], "sport": key[1], "dst": key[2], "dport": key[3]})
    expect_inconsistent(run, tmp_path, "connection tracking says allowed, the packets show timed out")


@pytest.mark.parametrize("change", [-20_000, 900_000])
def test_bytes_disagree(tmp_path: Path, change: int) -> None:
    run = demo()
    tracking = run.links["nfc-0"].tracking
    assert tracking is not None
    tracking["bytes_reply"] += change
    expect_inconsistent(run, tmp_path, "connection tracking counted")


def test_row_that_does_not_list_the_step(tmp_path: Path) -> None:
    run = demo()
    run.event("use", 1500, "proxy-1", "15", "linux-vm:2000", attempt="nfc-0")
    expect_inconsistent(run, tmp_path, "row H5 does not list step 15")


def test_connection_that_no_row_describes(tmp_path: Path) -> None:
    run = demo()
    run.connect("odd", 2000, "8", "backup-server", "san", 22, "default", result="drop")
    run.counters["default"] = 3
    run.log += [{**run.log[-1], "utc": utc(2000 + w)} for w in (1000, 3000)]
    expect_inconsistent(run, tmp_path, "no row of the matrix")


# --- foreign ---------------------------------------------------------------------------------------------------------


def test_foreign_packets_are_listed_and_break_nothing(tmp_path: Path) -> None:
    run = demo()
    run.connect("x", 2000, "-", "console", "repository-1", 445, "default", result="drop", event=False)
    run.counters["default"] += 2
    run.log += [{**run.log[-1], "utc": utc(2000 + w)} for w in (1000, 3000)]
    run.wire.frame(utc(2500), udp(IP["proxy-1"], 40000, IP["vcenter"], 53), out=False)
    report = run.report(tmp_path)
    assert report.exit_code == 0, report.problems()
    foreign = report.to_flows()["foreign"]
    assert [(f["initiator"], f["responder"], f["port"], f["verdict"]) for f in foreign] == [
        ("console", "repository-1", 445, "timed out"),
        ("proxy-1", "vcenter", 53, "timed out"),
    ]
    assert report.to_report()["foreign"] == 2


def test_other_session_is_foreign(tmp_path: Path) -> None:
    run = demo()
    run.connect("x", 2000, "8", "backup-server", "vcenter", 443, "H1")
    for event in run.events:
        if event.get("attempt") == "x":
            event["session"] = "another"
    report = run.report(tmp_path)
    assert report.exit_code == 0 and [f.responder for f in report.foreign] == ["vcenter"]


# --- joining ---------------------------------------------------------------------------------------------------------


def test_event_without_local_port_is_matched_by_host_port_and_time(tmp_path: Path) -> None:
    run = demo()
    for event in run.events:
        if event["kind"] == "attempt" and event["attempt"] == "ssh":
            event["local"] = [IP["backup-server"], 0]
    report = run.report(tmp_path)
    flow = next(f for f in report.flows if f.port == 22)
    assert report.exit_code == 0 and flow.matched == "host, port and time"


@pytest.mark.parametrize("later", [1000, 150])
def test_same_tuple_twice_gives_two_flows(tmp_path: Path, later: int) -> None:
    run = RunBuilder()
    for number in range(2):
        run._port = 45000
        link = run.connect(f"a{number}", 100 + number * later, "18", "proxy-1", "vcenter", 443, "H4")
        link.talk.close(utc(200 + number * later))
    report = run.report(tmp_path)
    flows = [f for f in report.flows if f.attempted]
    assert [f.start for f in flows] == [utc(100), utc(100 + later)] and report.inconsistent == []
    assert all(len(f.joined.log) == 1 and f.joined.tracking for f in flows if f.joined)


def test_outcome_that_never_came(tmp_path: Path) -> None:
    run = demo()
    run.events = [e for e in run.events if not (e["kind"] == "outcome" and e.get("attempt") == "nfc-1")]
    report = run.report(tmp_path)
    flow = next(f for f in report.flows if f.joined and f.joined.attempt and f.joined.attempt.id == "nfc-1")
    assert flow.witnesses["event"] == "not applicable" and report.exit_code == 0


def test_no_route_left_the_machine(tmp_path: Path) -> None:
    run = demo()
    run.connect("far", 2000, "8", "backup-server", "vcenter", 443, "H1", on_wire=False, logged=False, tracked=False)
    for event in run.events:
        if event["kind"] == "outcome" and event["attempt"] == "far":
            event["outcome"] = "unreachable"
    report = run.report(tmp_path)
    flow = next(f for f in report.flows if f.joined and f.joined.attempt and f.joined.attempt.id == "far")
    assert flow.verdict.value == "not attempted" and flow.consistent


def test_block_during_the_run_splits_the_prediction(tmp_path: Path) -> None:
    run = demo()
    block = of_row("block-1", load_matrix("12.3").row("H5"), Action.DROP).model_dump(mode="json", by_alias=True)
    run.overlays = [
        {"utc": utc(0), "overlays": []},
        {"utc": utc(1500), "overlays": [block]},
    ]
    run.connect("late", 1800, "19", "proxy-1", "esxi-1", 902, "block-1", result="drop", task="files-vm:2000")
    run.counters["block-1"] += 2
    run.log += [{**run.log[-1], "utc": utc(1800 + w)} for w in (1000, 3000)]
    report = run.report(tmp_path)
    assert report.inconsistent == []
    late = next(f for f in report.flows if f.rule == "block-1")
    assert (late.predicted, late.verdict.value) == ("timed out", "timed out")


def test_packet_at_the_instant_of_a_change_may_meet_either_rules(tmp_path: Path) -> None:
    run = RunBuilder()
    block = of_row("block-1", load_matrix("12.3").row("H5"), Action.DROP).model_dump(mode="json", by_alias=True)
    run.overlays = [
        {"utc": utc(0), "overlays": []},
        {"utc": utc(105), "overlays": [block]},
    ]
    run.connect("nfc", 100, "19", "proxy-1", "esxi-1", 902, "H5")
    flow = only(run.report(tmp_path))
    assert flow.consistent and flow.predicted == "allowed"


def test_cut_connection_stays_allowed_and_says_so(tmp_path: Path) -> None:
    run = demo()
    run.links["nfc-0"].talk.reset_by_router(utc(1700))
    report = run.report(tmp_path)
    flow = next(f for f in report.flows if f.port == 902)
    assert report.exit_code == 0 and flow.verdict.value == "allowed" and "cut later" in flow.symptom


def test_connection_cut_by_dropping_says_so(tmp_path: Path) -> None:
    run = demo()
    run.connect("late", 1800, "18", "proxy-1", "vcenter", 443, "H4", task="files-vm:2000")
    talk = run.links["late"].talk
    for repeat in range(3):
        run.wire.frame(utc(1900 + repeat * 200), talk.packet("PA", payload=b"x" * 400), out=False)
    report = run.report(tmp_path)
    flow = next(f for f in report.flows if f.start == utc(1800))
    assert report.exit_code == 0 and "cut later: 3 data packets" in flow.symptom and flow.payload_sent == 0


def test_run_that_ends_while_data_flows(tmp_path: Path) -> None:
    run = demo()
    run.say("nfc-0", 4990, 10, 10)
    run.say("nfc-0", 5001, 9000, 90_000 // 2)  # after the end: only the capture saw it
    tracking = run.links["nfc-0"].tracking
    assert tracking is not None
    tracking["bytes_reply"] -= 45_000
    tracking["bytes_orig"] += 900_000  # conntrack was read a little later
    report = run.report(tmp_path)
    assert report.inconsistent == []
    assert next(f for f in report.flows if f.port == 902).payload_sent < 9000


def test_run_that_ends_while_a_connection_is_being_opened(tmp_path: Path) -> None:
    run = demo()
    link = run.connect("late", 4999.9, "18", "proxy-1", "vcenter", 443, "H4")
    run.events = [e for e in run.events if not (e["kind"] == "outcome" and e.get("attempt") == "late")]
    report = run.report(tmp_path)
    assert report.inconsistent == [] and link.tracking
    flow = next(f for f in report.flows if f.start == utc(4999.9))
    assert flow.witnesses["socket"] == "not applicable" and "being opened" in flow.reasons["socket"]


@pytest.mark.parametrize(
    ("codes", "expected"), [((), 0), ((0, 1), 1), ((1, 4), 4), ((4, 3), 3), ((3, 2, 4), 2), ((0, 77), 1)]
)
def test_exit_codes_have_an_order(codes: tuple[int, ...], expected: int) -> None:
    assert combine(*codes) == expected


def test_times_are_utc_nanoseconds() -> None:
    assert utc(1) - utc(0) == MS
