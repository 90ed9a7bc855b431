# SPDX-License-Identifier: MIT
"""A transport mode that is not possible: another one takes over and says why, or, without failover, the job fails and says why.

One lab: `linux-vm` where every mode works, `files-vm` on a datastore that the host of the proxy's VM does not see, so that
vCenter refuses to attach its disks there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.core.fabric import FabricClient
from tests.e2e import guestdisks, harness
from tests.e2e.harness import Document, Lab, Run

pytestmark = pytest.mark.slow

ALL = {f"I{n}": "held" for n in range(1, 11)}
FILES_902 = 512 << 10
"""Bytes on 902 of a task that reads nothing but files there."""


def far_datastore(plan: Document) -> None:
    """files-vm goes to a datastore that only esxi-2 has; proxy-2's VM is on esxi-1."""
    plan["vsphere"]["datastores"].append({"name": "datastore2", "capacity": "1GiB", "hosts": ["esxi-2"]})
    files = next(vm for vm in plan["vsphere"]["vms"] if vm["name"] == "files-vm")
    files |= {"host": "esxi-2", "datastore": "datastore2"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    home = tmp_path_factory.mktemp("failover")
    topology = harness.drill_topology(home, far_datastore)
    with harness.up(home, "failover", "--topology", str(topology)) as found:
        yield found


@pytest.fixture
def lab(site: Lab) -> Iterator[Lab]:
    """The lab; whatever a test did, no snapshot and no attached disk is left, and everything works again afterwards."""
    try:
        yield site
    finally:
        site.done("firewall", "reset")
        site.done("infra", "proxies", "edit", "proxy-1", "--modes", "san,nbdssl,nbd")
        site.done("infra", "proxies", "edit", "proxy-2", "--modes", "hotadd")
    assert set(site.snapshots().values()) == {0}
    assert attachments(site) == []


def attachments(lab: Lab) -> list[Document]:
    """Disks that are attached to any VM, by the storages' own word."""
    found: list[Document] = []
    for datastore in ("datastore1", "datastore2"):
        client = lab.storage(datastore)
        try:
            found += client.call("disk.attachments")
        finally:
            client.close()
    return found


def tasks(document: Document) -> dict[str, Document]:
    """The tasks of a run by their id."""
    return {task["task"]: task for vm in document["vms"] for task in vm["tasks"]}


def received(run: Run, port: int) -> int:
    """Payload bytes that came back over connections to a port, by sequence numbers."""
    return sum(flow["payload_received"] for flow in run.flows["flows"] if flow["port"] == port and flow["start"])


def assert_points_equal_truth(lab: Lab, document: Document, folder: Path, expected: int) -> None:
    """Every disk of this run's points equals the truth."""
    compared = 0
    for point in document["restore_points"]:
        datastore = "datastore2" if point["vm"] == "files-vm" else "datastore1"
        found = guestdisks.find_point(lab, point["point"], point["vm"])
        compared += guestdisks.assert_equals_truth(lab, found, folder, datastore)
    assert compared == expected


@pytest.mark.parametrize(
    ("how", "code", "symptom"), [("reset", "connect.refused", "refused"), ("drop", "connect.timed-out", "timed out")]
)
def test_blocked_3260_falls_to_network_and_says_why(
    lab: Lab, tmp_path: Path, how: str, code: str, symptom: str
) -> None:
    overlay = lab.done("firewall", "block", "proxy-1", "san", "3260", "--with", how)["overlay"]["id"]
    document, run = lab.job("--mode", "auto", code=0)
    assert (document["result"], document["invariants"]) == ("warning", ALL)
    for name, task in tasks(document).items():
        assert (task["mode"], task["proxy"]) == ("nbdssl", "proxy-1")
        reason = {"mode": "san", "code": code, "message": f"proxy-1 to san:3260: {symptom}"}
        assert task["failed_over"] == [reason]
        told = [w for w in document["warnings"] if w["message"].startswith(f"{name}: san is not possible")]
        assert [w["code"] for w in told] == ["job.mode-failover"]
        assert reason["message"] in told[0]["message"]
        assert told[0]["next"]
    tried = run.attempts("H9")
    assert {(f["verdict"], f["rule"], f["step"]) for f in tried} == {(symptom, overlay, "20a")}
    assert received(run, 3260) == 0
    assert received(run, 902) > 3 * FILES_902
    assert (run.step("20a")["status"], run.step("20c")["status"]) == ("failed", "done")
    assert_points_equal_truth(lab, document, tmp_path, 3)


def test_blocked_3260_without_failover_fails_at_step_20a(lab: Lab) -> None:
    before = lab.points()
    lab.done("firewall", "block", "proxy-1", "san", "3260", "--with", "reset")
    document, run = lab.job("--mode", "san", "--no-failover", code=1)
    error = document["error"]
    assert (error["code"], error["step"]) == ("connect.refused", "20a")
    assert (error["host"], error["target"], error["port"]) == ("proxy-1", "san", 3260)
    assert error["next"]
    assert (document["result"], document["restore_points"]) == ("failed", [])
    assert lab.points() == before
    assert received(run, 902) < FILES_902, "no disk was read another way"
    assert run.step("20c")["status"] in ("skipped", "not reached")


def test_array_that_hides_its_lun_is_told_apart_from_a_firewall(lab: Lab, tmp_path: Path) -> None:
    client = FabricClient(lab.outside_path("/run/vadplab/fabric/san-datastore1.sock"))
    try:
        client.call("login.refuse", on=True)
        document, run = lab.job("--mode", "auto", code=0)
    finally:
        client.call("login.refuse", on=False)
        client.close()
    refused = tasks(document)["linux-vm:2000"]
    assert refused["mode"] == "nbdssl"
    assert [one["code"] for one in refused["failed_over"]] == ["san.not-visible"]
    assert run.verdicts("H9") == {"allowed"}, "the firewall let it through"
    assert_points_equal_truth(lab, document, tmp_path, 3)


def test_refused_attach_falls_to_network_and_says_why(lab: Lab, tmp_path: Path) -> None:
    lab.done("infra", "proxies", "edit", "proxy-2", "--modes", "hotadd,nbdssl")
    document, run = lab.job("--mode", "hotadd", "--full", code=0)
    assert (document["result"], document["invariants"]) == ("warning", ALL)
    found = tasks(document)
    assert {t["proxy"] for t in found.values()} <= {"proxy-1", "proxy-2"}
    assert (found["linux-vm:2000"]["mode"], found["linux-vm:2000"]["failed_over"]) == ("hotadd", [])
    for name in ("files-vm:2000", "files-vm:2001"):
        assert found[name]["mode"] == "nbdssl"
        assert [(one["mode"], one["code"]) for one in found[name]["failed_over"]] == [("hotadd", "hotadd.refused")]
        assert any(w["message"].startswith(f"{name}: hotadd is not possible") for w in document["warnings"])
    assert "ReconfigVM_Task" in run.gateway()
    assert (run.step("20b")["status"], run.step("20c")["status"]) == ("failed", "done")
    assert_points_equal_truth(lab, document, tmp_path, 3)


def test_refused_attach_without_failover_fails_that_vm_alone(lab: Lab, tmp_path: Path) -> None:
    document, run = lab.job("--mode", "hotadd", "--no-failover", code=1)
    files = next(vm for vm in document["vms"] if vm["vm"] == "files-vm")
    assert (files["result"], files["error"]["code"], files["error"]["step"]) == ("failed", "hotadd.refused", "20b")
    assert "datastore2" in files["error"]["message"]
    assert [p["vm"] for p in document["restore_points"]] == ["linux-vm"]
    assert received(run, 902) < FILES_902
    assert_points_equal_truth(lab, document, tmp_path, 1)


def test_auto_takes_hotadd_where_no_proxy_sees_the_san(lab: Lab, tmp_path: Path) -> None:
    lab.done("infra", "proxies", "edit", "proxy-1", "--modes", "nbdssl")
    lab.done("infra", "proxies", "edit", "proxy-2", "--modes", "hotadd,nbdssl")
    document, run = lab.job("--mode", "auto", code=0)
    found = tasks(document)
    assert {t["proxy"] for t in found.values()} == {"proxy-2"}
    assert found["linux-vm:2000"]["mode"] == "hotadd"
    assert {found[f"files-vm:{key}"]["mode"] for key in (2000, 2001)} == {"nbdssl"}
    assert run.attempts("H9") == []
    assert_points_equal_truth(lab, document, tmp_path, 3)
