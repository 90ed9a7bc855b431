# SPDX-License-Identifier: MIT
"""A row of the matrix is blocked: the job fails at the step of that row and names it, and goes no further on the wire."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.harness import Document, Lab


def assert_error(document: Document, code: str, step: str, initiator: str, target: str, port: int | range) -> None:
    """The document's error names the step, both ends and what was seen."""
    error = document["error"]
    assert (error["code"], error["step"], error["host"], error["target"]) == (code, step, initiator, target)
    ports = port if isinstance(port, range) else range(port, port + 1)
    assert error["port"] in ports
    symptom = {"connect.timed-out": "timed out", "connect.refused": "refused", "connect.prohibited": "prohibited"}[code]
    assert error["symptom"] == symptom
    assert error["message"] == f"{initiator} to {target}:{error['port']}: {symptom}"
    assert error["next"]


def assert_nothing_saved(lab: Lab, document: Document, before: list[Document]) -> None:
    """No restore point of this run; what was there before still is."""
    assert document["result"] == "failed"
    assert document["restore_points"] == []
    assert lab.points() == before


@pytest.mark.parametrize(
    ("how", "code", "verdict"),
    [
        ("drop", "connect.timed-out", "timed out"),
        ("reset", "connect.refused", "refused"),
        ("icmp", "connect.prohibited", "prohibited"),
    ],
)
def test_902_blocked_fails_at_step_19_and_leaves_no_snapshot(drill: Lab, how: str, code: str, verdict: str) -> None:
    before = drill.points()
    overlay = drill.done("firewall", "block", "proxy-1", "esxi-1", "902", "--with", how)["overlay"]["id"]
    document, run = drill.job(code=1)
    assert_error(document, code, "19", "proxy-1", "esxi-1", 902)
    assert_nothing_saved(drill, document, before)
    assert {vm["result"] for vm in document["vms"]} == {"failed"}
    # The witnesses: whoever tried was stopped by exactly this rule, as told, and no byte came through.
    tried = run.attempts("H5")
    assert tried
    for flow in tried:
        assert (flow["verdict"], flow["rule"], flow["predicted"]) == (verdict, overlay, verdict)
        assert flow["witnesses"]["packets"] == flow["witnesses"]["counter"] == verdict
        # A Data Mover that was stopped because its VM had failed meanwhile did not live to hear the end.
        assert flow["witnesses"]["event"] == verdict or "before the outcome was known" in flow["reasons"]["event"]
        assert flow["payload_sent"] == flow["payload_received"] == 0
    assert verdict in {flow["witnesses"]["event"] for flow in tried}
    assert run.counted(overlay) >= len(tried)
    assert run.authd("esxi-1") == []
    assert run.step("19")["status"] == "failed"
    assert run.step("20c")["status"] == "not reached"
    # Both sides of the snapshot say that it was made and is gone; the guest ran on before anything was read.
    calls = run.gateway()
    assert calls.count("CreateSnapshot_Task") == calls.count("RemoveSnapshot_Task") > 0
    assert set(drill.snapshots().values()) == {0}
    assert run.freezes("linux-vm") == ["frozen", "thawed"]
    assert {document["invariants"][name] for name in ("I3", "I4", "I8", "I9")} == {"held"}


def test_data_mover_ports_blocked_fails_at_step_6_before_any_snapshot(drill: Lab) -> None:
    before = drill.points()
    drill.done("firewall", "block", "backup-server", "repository-1", "2500-3300")
    drill.done("firewall", "block", "backup-server", "proxy-1", "2500-3300")
    document, run = drill.job(code=1)
    assert_error(document, "connect.timed-out", "6", "backup-server", document["error"]["target"], range(2500, 3301))
    assert document["error"]["target"] in ("repository-1", "proxy-1")
    assert_nothing_saved(drill, document, before)
    assert run.verdicts("M4") == {"allowed"}, "step 5 works: the known case of 6162 open and 2500-3300 blocked"
    assert run.verdicts("M5") == {"timed out"}
    assert run.rows() == {"C1", "M4", "M5"}
    assert run.gateway() == [], "nobody spoke to vCenter"
    assert run.freezes("linux-vm") == []


def test_transport_service_blocked_fails_at_step_5(drill: Lab) -> None:
    before = drill.points()
    drill.done("firewall", "block", "M4")
    document, run = drill.job(code=1)
    assert document["error"]["step"] in ("5a", "5b")
    assert_error(document, "connect.timed-out", document["error"]["step"], "backup-server", "repository-1", 6162)
    assert_nothing_saved(drill, document, before)
    assert run.rows() == {"C1", "M4"}
    assert run.verdicts("M4") == {"timed out"}
    assert run.gateway() == []


def test_vcenter_blocked_fails_at_step_8_with_no_packet_to_a_guest(drill: Lab) -> None:
    before = drill.points()
    drill.done("firewall", "block", "H1")
    document, run = drill.job(code=1)
    assert_error(document, "connect.timed-out", "8", "backup-server", "vcenter", 443)
    assert_nothing_saved(drill, document, before)
    assert {vm["result"] for vm in document["vms"]} == {"failed"}, "no VM was backed up, so none succeeded"
    assert document["invariants"]["I1"] == "held"
    for guest in ("linux-guest", "win-guest"):
        assert run.syns_to(drill.address(guest)) == set()
    assert run.gateway() == []
    assert run.verdicts("D1") == {"allowed"}, "steps 5 to 7 come before 8"
    assert run.freezes("linux-vm") == []


def test_ssh_blocked_is_a_warning_and_never_a_guest_operation(drill: Lab, tmp_path: Path) -> None:
    drill.done("firewall", "block", "G10")
    document, run = drill.job(code=0)
    assert document["result"] == "warning"
    assert document["error"] is None
    (warning,) = document["warnings"]
    assert (warning["vm"], warning["code"], warning["step"]) == ("linux-vm", "connect.timed-out", "13")
    assert (warning["host"], warning["port"]) == ("backup-server", 22)
    linux, files = document["vms"]
    assert (linux["scripts"], linux["consistency"], linux["result"]) == ("did not run", "crash", "warning")
    assert (files["scripts"], files["result"]) == ("off", "success")
    points = {p["vm"]: p for p in document["restore_points"]}
    assert points["linux-vm"]["consistency"] == "crash"
    assert {p["vm"] for p in drill.points()} == {"linux-vm", "files-vm"}
    # No failover to guest operations: nothing but SSH was tried, and vCenter never heard a guest call.
    assert run.verdicts("G10") == {"timed out"}
    assert run.syns_to(drill.address("linux-guest")) == {
        (drill.address("backup-server"), drill.address("linux-guest"), 22)
    }
    guest_calls = ("InGuest", "AcquireCredentialsInGuest", "ValidateCredentialsInGuest", "GuestOperations")
    assert [m for m in run.gateway() if any(word in m for word in guest_calls)] == []
    assert run.freezes("linux-vm") == []
    assert run.attempts("H3") == run.attempts("H7") == []
    # A crash-consistent disk is still the truth, and sound once its journal is replayed.
    disk = ("restore", points["linux-vm"]["point"], "--vm", "linux-vm", "--disk", "1", "--to", str(tmp_path / "disk"))
    restored = drill.done(*disk, "--compare", "--check")
    assert restored["comparison"]["equal"]
    assert restored["check"]["filesystem"] == "crash-consistent"
    assert restored["check"]["sound"]


def test_console_blocked_fails_the_caller_alone(drill: Lab) -> None:
    before = drill.points()
    drill.done("firewall", "block", "C1")
    document, run = drill.job(code=1)
    assert_error(document, "connect.timed-out", "1", "console", "backup-server", 9392)
    assert_nothing_saved(drill, document, before)
    assert run.rows() == {"C1"}
    assert run.first_syns() == {(drill.address("console"), drill.address("backup-server"), 9392)}
    assert run.flows["foreign"] == []
    assert run.gateway() == []


def test_proxy_to_vcenter_blocked_fails_at_step_18_without_a_syn_to_902(drill: Lab) -> None:
    before = drill.points()
    drill.done("firewall", "block", "H4")
    document, run = drill.job(code=1)
    assert_error(document, "connect.timed-out", "18", "proxy-1", "vcenter", 443)
    assert_nothing_saved(drill, document, before)
    assert run.verdicts("H4") == {"timed out"}
    assert run.attempts("H5") == []
    assert {port for _, _, port in run.first_syns()}.isdisjoint({902})
    assert run.counted("H5") == 0
    assert not [m for m in run.gateway() if m.startswith("Nfc")], "no ticket was asked for"
    calls = run.gateway()
    assert calls.count("CreateSnapshot_Task") == calls.count("RemoveSnapshot_Task") > 0
    assert document["invariants"]["I8"] == "held"


def test_after_reset_the_next_run_succeeds(drill: Lab) -> None:
    drill.done("firewall", "block", "H5")
    assert [gone["row"] for gone in drill.done("firewall", "reset")["removed"]] == ["H5"]
    document, run = drill.job(code=0)
    assert document["result"] == "success"
    assert run.verdicts("H5") == {"allowed"}
