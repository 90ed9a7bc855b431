# SPDX-License-Identifier: MIT
"""Fulls and incrementals through the sequence, transport modes and their failover, lost proxies, leftovers, retention."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import ConnectRefused, VadplabError
from engine.modes.errors import HotAddRefused, SanNotVisible
from engine.store.errors import ChainLocked, ParentUnusable, StoreFull
from engine.store.manifest import Manifest
from engine.vsphere import VSphereFault
from engine.vsphere.tracking import Tracking
from tests.engine.manager.test_sequence import left_clean, run
from tests.engine.manager.world import PROXY_VM, World, timed_out

PARENT = "20261125T071500Z-3f2a"
PERIOD = "52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63"
TASK = "linux-vm:2000"


def tracked(**job: Any) -> World:
    """One VM with a disk that is tracked, and no restore point yet."""
    world = World(vms=["linux-vm"], **job)
    world.known = {"linux-vm": world.known["linux-vm"]}
    world.tracking = Tracking(True)
    world.change_ids["vm-linux-vm"] = {2000: f"{PERIOD}/5"}
    world.areas["vm-linux-vm", 2000, "*"] = [(0, 65536)]
    world.areas["vm-linux-vm", 2000, f"{PERIOD}/4"] = [(65536, 65536)]
    return world


def with_parent(world: World, change_id: str | None = f"{PERIOD}/4") -> World:
    disk = {"key": 2000, "capacity": 1 << 20, "change_id": change_id}
    point = {"point": PARENT, "uuid": "uuid-linux-vm", "folder": "/repository/parent", "disks": [disk]}
    world.newest["linux-vm"] = {"point": point}
    return world


def call(world: World, method: str, subject: str = TASK) -> dict[str, Any]:
    return [params for m, s, params in world.calls if (m, s) == (method, subject)][-1]


def task_of(result: dict[str, Any], task: str = TASK) -> dict[str, Any]:
    return next(t for v in result["vms"] for t in v["tasks"] if t["task"] == task)


def test_first_run_is_a_full_of_what_is_allocated_and_remembers_the_change_id() -> None:
    world = tracked()
    world.tracking = Tracking(True, switched=True)
    result = run(world)
    assert result["result"] == "success"
    assert call(world, "target.open")["parent"] is None
    read = call(world, "source.read")
    assert (read["ranges"], read["incremental"], read["compare"]) == ([[0, 65536]], False, False)
    assert call(world, "point.begin", "linux-vm") == {"parent": None, "data": 65536, "capacity": 1 << 20}
    manifest = Manifest.parse(world.points["linux-vm"])
    assert (manifest.kind, manifest.parent, manifest.disks[0].change_id) == ("full", None, f"{PERIOD}/5")
    assert (task_of(result)["read"], task_of(result)["reason"]) == ("cbt", "allocated areas")
    assert any("switched on" in p["text"] for p in world.progress if p["kind"] == "note")
    at = world.log.index
    assert at("tracking linux-vm") < at("ssh linux-vm") < at("snapshot linux-vm") < at("thaw linux-vm")
    assert at("thaw linux-vm") < at("change_ids vm-linux-vm") < at("point.begin linux-vm")


def test_next_run_is_an_incremental_of_what_changed() -> None:
    world = with_parent(tracked())
    result = run(world)
    assert result["result"] == "success"
    assert call(world, "target.open")["parent"] == {"folder": "/repository/parent", "disk": 2000}
    read = call(world, "source.read")
    assert (read["ranges"], read["incremental"], read["compare"]) == ([[65536, 65536]], True, False)
    manifest = Manifest.parse(world.points["linux-vm"])
    assert (manifest.kind, manifest.parent) == ("incremental", PARENT)
    point = result["restore_points"][0]
    assert (point["kind"], point["parent"], result["vms"][0]["kind"]) == ("incremental", PARENT, "incremental")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda w: w.job.update(cbt=False), "switched off in the job"),
        (lambda w: w.change_ids.clear(), "not in effect"),
        (lambda w: with_parent(w, None), "no change ID"),
        (lambda w: with_parent(w, "52 00/4"), "reset"),
        (lambda w: w.areas.update({("vm-linux-vm", 2000, f"{PERIOD}/4"): VSphereFault("FileFault")}), "FileFault"),
        (lambda w: w.fail.update({("change_ids", "vm-linux-vm"): VSphereFault("gone")}), "gone"),
    ],
)
def test_without_usable_tracking_the_movers_compare(spoil: Any, words: str) -> None:
    world = with_parent(tracked())
    spoil(world)
    result = run(world)
    assert result["result"] == "success"
    read = call(world, "source.read")
    assert (read["ranges"], read["incremental"], read["compare"]) == (None, True, True)
    assert task_of(result)["read"] == "compare" and words in task_of(result)["reason"]
    said = [p["text"] for p in world.progress if p["kind"] == "step" and p["step"] == "17" and p["phase"] == "end"]
    assert any("compare" in text and words in text for text in said)
    assert ("tracking linux-vm" in world.log) is world.job.get("cbt", True)
    left_clean(world)


def test_tracking_that_cannot_be_switched_on_fails_nothing() -> None:
    world = tracked()
    world.change_ids.clear()
    world.fail["tracking", "linux-vm"] = VSphereFault("vcenter: no right to do that")
    result = run(world)
    assert result["result"] == "success"
    assert task_of(result)["read"] == "all" and "no right" in task_of(result)["reason"]


def test_full_on_request_and_new_disks_in_an_incremental() -> None:
    world = with_parent(tracked(full=True))
    assert run(world)["vms"][0]["reason"] == "a full was asked for"
    assert call(world, "point.begin", "linux-vm")["parent"] is None
    world = with_parent(tracked())
    world.newest["linux-vm"]["point"]["disks"][0]["key"] = 2007
    result = run(world)
    assert result["vms"][0]["kind"] == "incremental"
    assert call(world, "target.open")["parent"] is None and call(world, "source.read")["incremental"] is False


@pytest.mark.parametrize("error", [ParentUnusable("damaged below"), ChainLocked("merging")])
def test_chain_that_turns_out_unusable_makes_a_full(error: VadplabError) -> None:
    world = with_parent(tracked())
    world.fail["point.begin", "linux-vm"] = error
    world.times["point.begin", "linux-vm"] = 1
    result = run(world)
    assert result["result"] == "success" and world.log.count("point.begin linux-vm") == 2
    assert result["vms"][0]["kind"] == "full" and error.message in result["vms"][0]["reason"]
    assert call(world, "source.read")["ranges"] == [[0, 65536]]
    left_clean(world)


def test_no_space_fails_before_any_data_and_before_a_snapshot() -> None:
    world = tracked()
    world.free, world.need = 1 << 20, 2 << 20
    result = run(world)
    assert (result["error"]["code"], result["error"]["step"]) == ("job.no-space", "5a")
    assert not any(e.startswith(("start", "snapshot", "login")) for e in world.log)
    world = with_parent(tracked())
    world.free, world.need = 1 << 20, 2 << 20  # an incremental needs less
    assert run(world)["result"] == "success"
    world = tracked()
    world.fail["point.begin", "linux-vm"] = StoreFull("no room")
    result = run(world)
    assert (result["error"]["code"], result["error"]["step"]) == ("store.full", "21")
    assert "commit linux-vm" in world.log and not any(e.startswith("source.open") for e in world.log)
    left_clean(world)


ORDER = {
    "san": ["18", "19", "20a", "20a", "21"],
    "hotadd": ["18", "19", "20b", "20b", "21"],
    "nbd": ["18", "19", "20c", "20c", "21"],
    "nbdssl": ["18", "19", "20c", "20c", "21"],
}


@pytest.mark.parametrize("mode", ["san", "hotadd", "nbd", "nbdssl"])
def test_order_of_each_mode(mode: str) -> None:
    world = tracked(mode=mode, failover=False)
    world.modes = {"proxy-1": ["san", "hotadd", "nbdssl", "nbd"]}
    result = run(world)
    assert result["result"] == "success" and task_of(result)["mode"] == mode
    assert call(world, "source.open")["modes"] == [mode] and call(world, "source.open")["failover"] is False
    told = [p for p in world.progress if p["kind"] == "step" and p["task"] == TASK]
    data = ORDER[mode][2]
    assert [p["step"] for p in told if p["phase"] == "end"] == ["7", "17", "18", "19", data, "21"]
    assert {p["step"] for p in told if p["phase"] == "skipped"} == {"20a", "20b", "20c"} - {data}
    remembered = [p["linux-vm"]["attached"] for p in world.pendings if "attached" in p.get("linux-vm", {})]
    assert bool(remembered) is (mode == "hotadd")
    assert world.pendings[-1] == {} and not world.attached
    left_clean(world)


@pytest.mark.parametrize(
    ("mode", "able", "broken", "used"),
    [
        ("auto", ["san", "hotadd", "nbdssl"], {}, "san"),
        ("auto", ["hotadd", "nbdssl"], {}, "hotadd"),
        ("auto", ["san", "hotadd", "nbdssl"], {"san": SanNotVisible("no LUN")}, "hotadd"),
        (
            "auto",
            ["san", "hotadd", "nbdssl"],
            {"san": SanNotVisible("no LUN"), "hotadd": HotAddRefused("no")},
            "nbdssl",
        ),
        ("san", ["san", "hotadd", "nbdssl"], {"san": SanNotVisible("no LUN")}, "nbdssl"),
    ],
)
def test_failover_is_told(mode: str, able: list[str], broken: dict[str, VadplabError], used: str) -> None:
    world = tracked(mode=mode)
    world.modes, world.broken_modes = {"proxy-1": able}, broken
    result = run(world)
    assert task_of(result)["mode"] == used
    assert [f["mode"] for f in task_of(result)["failed_over"]] == list(broken)
    assert result["result"] == ("warning" if broken else "success")
    assert [w["code"] for w in result["warnings"]] == ["job.mode-failover"] * len(broken)
    for error in broken.values():
        assert any(error.message in w["message"] for w in result["warnings"])
    assert not world.attached
    left_clean(world)


def test_no_failover_fails_clearly() -> None:
    world = tracked(mode="san", failover=False)
    world.modes, world.broken_modes = {"proxy-1": ["san", "nbdssl"]}, {"san": SanNotVisible("no LUN")}
    result = run(world)
    assert (result["error"]["code"], result["error"]["step"]) == ("san.not-visible", "20a")
    assert "commit linux-vm" in world.log and not world.points
    left_clean(world)


DEATHS = ["source.open", "open.hotadd", "source.read"]


@pytest.mark.parametrize("method", DEATHS)
def test_lost_proxy_loses_only_its_tasks_which_another_one_reads(method: str) -> None:
    world = tracked(mode="auto")
    world.modes = {"proxy-1": ["hotadd", "nbdssl"], "proxy-2": ["nbdssl"]}
    world.dies[method, TASK] = "proxy-1"
    result = run(world)
    assert result["result"] == "warning" and [w["code"] for w in result["warnings"]] == ["job.proxy-lost"]
    task = task_of(result)
    assert (task["proxy"], task["mode"], task["error"]) == ("proxy-2", "nbdssl", None)
    assert task["lost"][0]["proxy"] == "proxy-1" and task["lost"][0]["error"]["code"] == "wire.closed"
    log = world.log
    died = log.index(f"died proxy-1 {TASK}")
    again = [f"start target {TASK}", f"start source {TASK}", f"mover proxy-2 {TASK}", f"data.connect {TASK}"]
    places = [died, *(len(log) - 1 - log[::-1].index(e) for e in again)]
    assert places == sorted(places)
    assert log.index(f"reassign {TASK}") > died and log.count("snapshot linux-vm") == 1
    if method != "source.open":
        assert f"detach {PROXY_VM}" in log and not world.attached
    assert list(world.points) == ["linux-vm"] and world.pendings[-1] == {}
    failed = [p["step"] for p in world.progress if p["kind"] == "step" and p["phase"] == "failed"]
    assert failed == {"source.open": ["19"], "open.hotadd": ["20b"], "source.read": ["20b", "21"]}[method]
    left_clean(world)


def test_a_second_loss_and_a_single_proxy_fail_the_vm() -> None:
    for proxies in (["proxy-1"], ["proxy-1", "proxy-2", "proxy-3"]):
        world = tracked()
        world.modes = {name: ["nbdssl"] for name in proxies}
        world.dies["source.open", TASK] = "proxy-1"
        if len(proxies) > 1:
            world.dies["source.read", TASK] = "proxy-2"
        result = run(world)
        assert result["result"] == "failed" and result["error"]["code"] == "wire.closed"
        assert result["error"]["target"] == proxies[min(1, len(proxies) - 1)]
        assert "commit linux-vm" in world.log and not world.points
        left_clean(world)


def test_proxy_that_is_not_reached_is_replaced_before_the_snapshot() -> None:
    world = tracked()
    world.modes = {"proxy-1": ["nbdssl"], "proxy-2": ["nbdssl"]}
    world.fail["transport", "proxy-1"] = timed_out("5b", "proxy-1", 6162)
    result = run(world)
    assert result["result"] == "warning" and task_of(result)["proxy"] == "proxy-2"
    assert world.log.index(f"reassign {TASK}") < world.log.index("login vcenter")
    left_clean(world)


def test_error_that_a_living_mover_reports_is_not_tried_elsewhere() -> None:
    world = tracked()
    world.modes = {"proxy-1": ["nbdssl"], "proxy-2": ["nbdssl"]}
    world.fail["source.read", TASK] = timed_out("20c", "esxi-1", 902, "proxy-1")
    result = run(world)
    assert result["result"] == "failed" and f"reassign {TASK}" not in world.log
    left_clean(world)


def test_disk_left_attached_is_detached_before_the_commit_and_a_failure_is_told() -> None:
    world = tracked(mode="hotadd", failover=False)
    world.modes = {"proxy-1": ["hotadd"]}
    world.dies["source.read", TASK] = "proxy-1"
    result = run(world)
    assert result["result"] == "failed" and not world.attached
    assert world.log.index(f"detach {PROXY_VM}") < world.log.index("commit linux-vm")
    left_clean(world)
    world = tracked(mode="hotadd", failover=False)
    world.modes = {"proxy-1": ["hotadd"]}
    world.fail["detach", PROXY_VM] = ConnectRefused("vcenter refused")
    world.dies["open.hotadd", TASK] = "proxy-1"
    world.fail["commit", "linux-vm"] = ConnectRefused("vcenter refused")
    result = run(world)
    assert {w["code"] for w in result["warnings"]} == {"connect.refused", "snapshot.orphaned"}
    assert set(world.pendings[-1]["linux-vm"]) == {"attached", "snapshot"}


def test_retention_after_a_visible_point_only() -> None:
    world = World(retention={"points": 3, "days": None})
    world.fail["source.read", "linux-vm:2000"] = timed_out("20c", "esxi-1", 902)
    result = run(world)
    assert world.retained == [("db-vm", {"count": 3})]
    assert world.log.index("commit db-vm") < world.log.index("retain db-vm")
    world = World(retention={"days": 7})
    world.fail["retain", "db-vm"] = ChainLocked("a restore reads the chain")
    result = run(world)
    assert result["result"] == "warning" and world.retained == [("linux-vm", {"days": 7})]
    assert [w["code"] for w in result["warnings"]] == ["job.retention"]
    assert len(result["restore_points"]) == 2
    world = World()
    run(world)
    assert world.retained == []


@pytest.mark.parametrize(
    ("method", "subject", "lost"),
    [
        ("start", "target linux-vm:2000", "linux-vm"),
        ("source.open", "linux-vm:2000", "linux-vm"),
        ("snapshot", "linux-vm", "linux-vm"),
        ("change_ids", "vm-linux-vm", "linux-vm"),
        ("commit", "linux-vm", None),
    ],
)
def test_fault_of_this_program_fails_its_vm_only(
    method: str, subject: str, lost: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    world.fail[method, subject] = ZeroDivisionError("x")  # type: ignore[assignment]
    result = run(world)
    assert set(world.points) == ({"db-vm", "linux-vm"} - {lost})
    assert result["result"] == ("failed" if lost else "warning")
    if lost:
        assert result["error"]["code"] == "internal" and "ZeroDivisionError" in result["error"]["message"]
        assert not world.snapshots
    assert "ZeroDivisionError" in capsys.readouterr().err
    left_clean(world)
