# SPDX-License-Identifier: MIT
"""Who opens the data connection is a parameter: each direction needs exactly its own rule, and never turns by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.harness import Document, Lab
from tests.e2e.test_incrementals import at_vcenter
from tests.e2e.test_restore import assert_equals, destroyed, judged, record_of

FORWARD, REVERSE = "proxy-to-repository", "repository-to-proxy"


@pytest.fixture(scope="module")
def reverse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab whose policy lets the repository call the proxy, and not the other way round."""
    home = tmp_path_factory.mktemp("reverse")
    topology = harness.drill_topology(home)
    with harness.up(home, "reverse", "--topology", str(topology), "--policy", "reverse-data") as lab:
        yield lab


def assert_data(lab: Lab, direction: str, *, works: bool) -> Document:
    """Runs the job in a direction; the other direction is never tried, and counts nothing."""
    row, other = ("D1", "D2") if direction == FORWARD else ("D2", "D1")
    caller, listener = ("proxy-1", "repository-1") if direction == FORWARD else ("repository-1", "proxy-1")
    document, run = lab.job("--data-direction", direction, code=0 if works else 1)
    data = run.attempts(row)
    assert data
    assert {(f["initiator"], f["responder"]) for f in data} == {(caller, listener)}
    assert all(2500 <= f["port"] <= 3300 for f in data)
    assert run.attempts(other) == []
    back = (lab.address(listener), lab.address(caller))
    assert not [syn for syn in run.first_syns() if syn[:2] == back], "a connection went the other way"
    rules = {rule["rule"]: rule for rule in lab.done("firewall", "show")["rules"]}
    if other in rules:
        assert run.counted(other) == 0
    if works:
        assert document["result"] == "success"
        assert {(f["verdict"], f["rule"]) for f in data} == {("allowed", row)}
        assert len(data) == 3, "one data connection a task"
        # The bytes of the backup went over it, from the proxy.
        sent = sum(f["payload_sent" if direction == FORWARD else "payload_received"] for f in data)
        assert sent > sum(t["moved"]["sent"] for vm in document["vms"] for t in vm["tasks"])
        return document
    error = document["error"]
    assert (error["code"], error["step"]) == ("connect.timed-out", "7")
    assert (error["host"], error["target"]) == (caller, listener)
    assert {f["verdict"] for f in data} == {"timed out"}
    assert {f["predicted"] for f in data} == {"timed out"}
    assert document["restore_points"] == []
    assert run.gateway() == [], "step 7 comes before vCenter is asked for anything"
    return document


def test_the_default_policy_carries_the_default_direction_alone(drill: Lab) -> None:
    assert_data(drill, FORWARD, works=True)
    assert_data(drill, REVERSE, works=False)


def test_the_reverse_policy_carries_the_reverse_direction_alone(reverse: Lab, tmp_path: Path) -> None:
    document = assert_data(reverse, REVERSE, works=True)
    point = next(p for p in document["restore_points"] if p["vm"] == "files-vm")
    argv = ("restore", point["point"], "--vm", "files-vm", "--disk", "2", "--to", str(tmp_path / "disk"), "--compare")
    assert reverse.done(*argv)["comparison"]["equal"]
    assert_data(reverse, FORWARD, works=False)


@pytest.mark.parametrize("mode", ["nbdssl", "hotadd"])
def test_a_vm_is_restored_in_the_reverse_direction(reverse: Lab, mode: str, tmp_path: Path) -> None:
    points = [p for p in reverse.points() if p["vm"] == "files-vm"]
    if not points:
        reverse.job("--data-direction", REVERSE, code=0)
        points = [p for p in reverse.points() if p["vm"] == "files-vm"]
    name, point = f"reverse-{mode}", points[-1]
    argv = ("--vm", "files-vm", "--name", name, "--mode", mode, "--no-failover", "--data-direction", REVERSE)
    with destroyed(reverse, name):
        document = reverse.done("restore", "vm", point["point"], *argv)
        assert (document["result"], document["direction"]) == ("success", REVERSE)
        assert [d["mode"] for d in document["disks"]] == [mode] * 2
        run = judged(document)
        data = run.attempts("D2")
        assert {(f["initiator"], f["verdict"]) for f in data} == {("repository-1", "allowed")}
        assert len(data) == 2, "one data connection a disk"
        assert run.attempts("D1") == []
        sent = sum(disk["sent"] for disk in document["disks"])
        assert sum(f["payload_sent"] for f in data) > sent > 0, "the disks went over it, from the repository"
        made = at_vcenter(reverse, "show")[name]
        for disk, kept in zip(made["disks"], point["disks"], strict=True):
            assert_equals(reverse, disk["path"], record_of(reverse, point, kept["key"]), tmp_path)
        answer = reverse("restore", "vm", point["point"], *argv)
        assert (answer.code, answer.error["code"]) == (2, "restore.vm-exists")
        assert name in at_vcenter(reverse, "show"), "the VM that has the name is left alone"


def test_one_live_rule_turns_it(drill: Lab) -> None:
    drill.done("firewall", "block", "D1")
    opened = drill.done("firewall", "allow", "D2")
    assert opened["overlay"]["row"] == "D2"
    document, run = drill.job("--data-direction", REVERSE, code=0)
    assert document["result"] == "success"
    assert {f["rule"] for f in run.attempts("D2")} == {opened["overlay"]["id"]}
