# SPDX-License-Identifier: MIT
"""The sequence: its order, and that every way out thaws the guest, commits the snapshot and leaves no half point."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from engine import snapshots
from engine.errors import ConnectRefused, VadplabError
from engine.events import EventLog
from engine.guest.errors import ScriptFailed
from engine.manager import restore_point
from engine.manager.sequence import BackupSequence
from engine.steps import STEPS
from engine.store.manifest import Manifest
from engine.vsphere import Snapshot, VSphereFault
from tests.engine.manager.world import PROXY_VM, World, disk, timed_out, vm_info


def run(world: World, tmp_path: Path | None = None) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        events = EventLog(
            tmp_path / "events" if tmp_path else None, host="backup-server", process="manager", session="s1"
        )
        sequence = BackupSequence("s1", world, events, commit_pauses=(0.0, 0.0))
        return await asyncio.wait_for(sequence.run(), 20)

    return asyncio.run(main())


def steps(world: World, phase: str) -> list[str]:
    return [p["step"] for p in world.progress if p["kind"] == "step" and p["phase"] == phase]


def left_clean(world: World) -> None:
    assert not world.frozen and not world.begun and world.open_movers == 0
    assert world.log[-1] == "release demo"


def test_order_of_a_whole_run(tmp_path: Path) -> None:
    world = World()
    result = run(world, tmp_path)
    assert result["result"] == "success" and result["error"] is None
    log = world.log
    at = log.index
    tasks = ["db-vm:2000", "db-vm:2001", "linux-vm:2000"]
    phases = [
        ["job demo"],
        ["acquire 3"],
        ["transport repository-1", "newest db-vm", "newest linux-vm"],
        [f"start target {t}" for t in tasks],
        ["transport proxy-1", *(f"start source {t}" for t in tasks)],
        [f"mover {s} {t}" for t in tasks for s in ("repository-1", "proxy-1")],
        [f"data.listen {t}" for t in tasks] + [f"data.connect {t}" for t in tasks],
        ["login vcenter", "vms all", "tracking db-vm", "tracking linux-vm"],
        ["ssh linux-vm"],
        ["freeze linux-vm"],
        ["snapshot linux-vm"],
        ["thaw linux-vm"],
        ["change_ids vm-linux-vm"],
        ["point.begin linux-vm"],
        ["source.open linux-vm:2000"],
        ["target.open linux-vm:2000"],
        ["source.read linux-vm:2000"],
        ["target.commit linux-vm:2000"],
        ["point.commit linux-vm"],
        ["commit linux-vm"],
        ["logout vcenter"],
        ["release demo"],
    ]
    for earlier, later in itertools.pairwise(phases):
        assert max(at(e) for e in earlier) < min(at(e) for e in later), (earlier, later)
    # the guest's VM goes first although the job names it last; the next VM begins once it is released
    assert at("thaw linux-vm") < at("snapshot db-vm") < at("source.read db-vm:2000") < at("commit db-vm")
    assert log.count("transport proxy-1") == log.count("transport repository-1") == 1
    assert [e for e in log if e.startswith("->")] == ["-> repository-1"] * 3
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    begun = [e["step"] for e in events if e["kind"] == "step" and e["phase"] in ("begin", "skipped")]
    first = sorted(set(begun), key=begun.index)
    assert first == sorted(first, key=[step.id for step in STEPS].index)
    every = {s.id for s in STEPS if s.by == "manager"} | {"20a", "20b"}  # these two are told to be skipped
    assert set(first) == every
    left_clean(world)


def test_points_and_manifests() -> None:
    world = World()
    result = run(world)
    assert {p["vm"]: p["consistency"] for p in result["restore_points"]} == {
        "linux-vm": "file-system",
        "db-vm": "crash",
    }
    manifest = Manifest.parse(world.points["db-vm"])
    assert [d.key for d in manifest.disks] == [2000, 2001] and manifest.session == "s1"
    ended = [(p["step"], p["task"]) for p in world.progress if p["kind"] == "step" and p["phase"] == "end"]
    assert [s for s, t in ended if t == "db-vm:2001"] == ["7", "17", "18", "19", "20c", "21"]
    assert {"kind": "task", "task": "db-vm:2001", "read": 5, "total": 10} in world.progress
    assert world.pendings[-1] == {} and {"linux-vm": {"guest": "10.0.0.9", "snapshot": True}} in world.pendings


def test_reverse_direction_listens_on_the_proxy() -> None:
    world = World(direction="repository-to-proxy")
    assert run(world)["result"] == "success"
    assert [e for e in world.log if e.startswith("->")] == ["-> proxy-1"] * 3


@pytest.mark.parametrize(
    ("key", "step", "never"),
    [
        (("transport", "repository-1"), "5a", "mover"),
        (("transport", "proxy-1"), "5b", "mover"),
        (("login", "vcenter"), "8", "ssh"),
        (("vms", "all"), "8", "ssh"),
    ],
)
def test_failures_before_the_snapshot_stop_the_job(key: tuple[str, str], step: str, never: str) -> None:
    world = World()
    world.fail[key] = timed_out(step, key[1], 6162)
    result = run(world)
    assert result["result"] == "failed" and result["error"]["step"] == step
    assert result["error"]["message"] == f"backup-server to {key[1]}:6162: timed out"
    assert not any(e.startswith((never, "snapshot", "freeze", "commit ", "point")) for e in world.log)
    assert steps(world, "failed") == [step]
    assert {vm["scripts"] for vm in result["vms"]} == {"not reached"}
    left_clean(world)


def test_blocked_movers_fail_at_step_6_without_a_snapshot() -> None:
    world = World()
    for task in ("db-vm:2000", "db-vm:2001", "linux-vm:2000"):
        world.fail["mover", f"proxy-1 {task}"] = timed_out("6", "proxy-1", 2501)
    result = run(world)
    assert (result["error"]["step"], result["error"]["target"], result["error"]["port"]) == ("6", "proxy-1", 2501)
    assert not any(e.startswith(("login", "snapshot")) for e in world.log)
    left_clean(world)


BOTH = ["20c", "21"]
"""A disk that is open and a stream that has begun fail together."""

AFTER_SNAPSHOT = [
    ("snapshot", "linux-vm", "15"),
    ("source.open", "linux-vm:2000", "19"),
    ("point.begin", "linux-vm", "21"),
    ("target.open", "linux-vm:2000", "21"),
    ("source.read", "linux-vm:2000", "20c"),
    ("target.commit", "linux-vm:2000", "21"),
    ("point.commit", "linux-vm", "21"),
]


@pytest.mark.parametrize(("method", "subject", "step"), AFTER_SNAPSHOT)
def test_commit_after_every_failure_and_the_other_vm_goes_on(method: str, subject: str, step: str) -> None:
    world = World()
    world.fail[method, subject] = timed_out(step, "esxi-1", 902, "proxy-1")
    result = run(world)
    assert result["result"] == "failed" and result["error"]["step"] == step
    assert result["error"]["message"] == "proxy-1 to esxi-1:902: timed out"
    assert world.log.index("commit linux-vm") > world.log.index(f"{method} {subject}")
    assert steps(world, "failed") == (BOTH if method in ("source.read", "target.open") else [step])
    assert world.log.index("thaw linux-vm") > world.log.index("freeze linux-vm")
    assert not world.snapshots and list(world.points) == ["db-vm"]
    assert [p["vm"] for p in result["restore_points"]] == ["db-vm"]
    assert {v["vm"]: v["result"] for v in result["vms"]} == {"linux-vm": "failed", "db-vm": "success"}
    left_clean(world)


def test_a_stop_waits_for_the_answer_whether_a_point_is_visible() -> None:
    world = World()
    world.slow["point.commit", "linux-vm"] = 0.3

    async def main() -> dict[str, Any]:
        world.reached["point.commit", "linux-vm"] = asyncio.Event()
        sequence = BackupSequence("s1", world, EventLog(None, host="h", process="manager"), commit_pauses=())
        job = asyncio.create_task(sequence.run())
        await asyncio.wait_for(world.reached["point.commit", "linux-vm"].wait(), 10)
        job.cancel()
        return await asyncio.wait_for(job, 10)

    result = asyncio.run(main())
    assert result["error"]["code"] == "job.stopped"
    assert {p["vm"] for p in result["restore_points"]} == set(world.points) >= {"linux-vm"}
    assert "point.abort linux-vm" not in world.log
    left_clean(world)


@pytest.mark.parametrize(("method", "subject", "step"), AFTER_SNAPSHOT)
def test_stop_thaws_and_commits(method: str, subject: str, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore_point, "COMMIT_PATIENCE", 0.2)
    world = World()
    world.hang.add((method, subject))

    async def main() -> dict[str, Any]:
        world.reached[method, subject] = asyncio.Event()
        sequence = BackupSequence("s1", world, EventLog(None, host="h", process="manager"), commit_pauses=())
        job = asyncio.create_task(sequence.run())
        await asyncio.wait_for(world.reached[method, subject].wait(), 10)
        job.cancel()
        return await asyncio.wait_for(job, 10)

    result = asyncio.run(main())
    assert result["result"] == "failed" and result["error"]["code"] == "job.stopped"
    assert result["error"]["next"] == "Run the job again. Nothing of this run is left behind."
    assert "commit linux-vm" in world.log and not world.snapshots
    left_clean(world)


def test_stopped_run_says_what_it_leaves() -> None:
    world = World()
    world.hang.add(("source.read", "linux-vm:2000"))
    world.fail["commit", "linux-vm"] = timed_out("22", "vcenter", 443)

    async def main() -> dict[str, Any]:
        world.reached["source.read", "linux-vm:2000"] = asyncio.Event()
        sequence = BackupSequence("s1", world, EventLog(None, host="h", process="manager"), commit_pauses=())
        job = asyncio.create_task(sequence.run())
        await asyncio.wait_for(world.reached["source.read", "linux-vm:2000"].wait(), 10)
        job.cancel()
        return await asyncio.wait_for(job, 10)

    result = asyncio.run(main())
    assert result["error"]["code"] == "job.stopped"
    for error in (result["error"], next(v["error"] for v in result["vms"] if v["vm"] == "linux-vm")):
        assert error["next"].startswith("Run the job again. Left behind: linux-vm: its snapshot may stay.")


class StoppedWorld(World):
    """A world whose job is stopped at its n-th call; the clean-up of one VM takes longer than that of the other."""

    def __init__(self, stop_at: int) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.running: asyncio.Task[dict[str, Any]] | None = None

    async def do(self, method: str, subject: str) -> None:
        calls = len(self.log) + 1
        if calls == self.stop_at and self.running is not None:
            self.running.cancel()
        await super().do(method, subject)
        if (method, subject) in {("commit", "db-vm"), ("thaw", "linux-vm")}:
            await asyncio.sleep(0.01)


def test_stopped_at_any_call_nothing_stays_frozen_or_orphaned() -> None:
    async def stopped(world: StoppedWorld) -> dict[str, Any]:
        sequence = BackupSequence("s1", world, EventLog(None, host="h", process="manager"), commit_pauses=())
        world.running = asyncio.create_task(sequence.run())
        return await asyncio.wait_for(world.running, 10)

    undisturbed = World()
    run(undisturbed)
    last = undisturbed.log.index("logout vcenter")
    for stop_at in range(1, last + 1):
        world = StoppedWorld(stop_at)
        result = asyncio.run(stopped(world))
        at = world.log[stop_at - 1]
        assert not world.snapshots, f"stopped at {at}: a snapshot is left"
        assert not world.frozen, f"stopped at {at}: a guest is frozen"
        assert not world.begun and world.open_movers == 0, f"stopped at {at}"
        assert result["error"] is None or result["error"]["code"] == "job.stopped"


def test_one_bad_disk_fails_its_vm_only() -> None:
    world = World()
    world.fail["source.read", "db-vm:2001"] = timed_out("20c", "esxi-1", 902, "proxy-1")
    result = run(world)
    assert result["result"] == "failed" and list(world.points) == ["linux-vm"]
    assert "point.abort db-vm" in world.log and "commit db-vm" in world.log
    left_clean(world)


@pytest.mark.parametrize(
    ("method", "error", "frozen"),
    [
        ("ssh", timed_out("13", "linux-vm", 22), False),
        ("freeze", ScriptFailed("linux-vm: pre-freeze script failed: exit code 1", step="13"), True),
    ],
)
def test_guest_failures_are_warnings(method: str, error: VadplabError, frozen: bool) -> None:
    world = World()
    world.fail[method, "linux-vm"] = error
    result = run(world)
    assert result["result"] == "warning" and result["error"] is None
    assert [(w["vm"], w["code"], w["step"]) for w in result["warnings"]] == [("linux-vm", error.code, "13")]
    vm = next(v for v in result["vms"] if v["vm"] == "linux-vm")
    assert (vm["scripts"], vm["consistency"]) == ("did not run", "crash")
    assert ("thaw linux-vm" in world.log) is frozen
    assert "snapshot linux-vm" in world.log
    left_clean(world)


def test_thaw_that_fails_is_a_warning_and_reads_wait_for_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.manager.guest.MARGIN", -4.5)  # the guest thaws itself half a second after the freeze
    world = World()
    world.job["guest"]["thaw_after"] = 5
    world.fail["thaw", "linux-vm"] = timed_out("16", "linux-vm", 22)
    start = time.monotonic()
    result = run(world)
    assert time.monotonic() - start >= 0.5
    assert result["result"] == "warning" and result["warnings"][0]["step"] == "16"
    assert world.log.count("thaw linux-vm") == 1
    assert world.pendings[-1] == {"linux-vm": {"guest": "10.0.0.9"}}


@pytest.mark.parametrize(
    ("info", "code"),
    [
        (vm_info("linux-vm", 1, on=True), "guest.no-address"),
        (vm_info("linux-vm", 1, on=True, address="10.0.0.9", family="windowsGuest"), "guest.not-supported"),
    ],
)
def test_guests_that_cannot_be_reached(info: Any, code: str) -> None:
    world = World()
    world.vms = [vm_info("db-vm", 2), info]
    result = run(world)
    assert result["result"] == "warning" and result["warnings"][0]["code"] == code
    assert "ssh linux-vm" not in world.log and len(result["restore_points"]) == 2


def test_blocked_commit_keeps_the_backup_and_reports_the_orphan() -> None:
    world = World()
    world.fail["commit", "linux-vm"] = timed_out("22", "vcenter", 443)
    result = run(world)
    assert result["result"] == "warning" and len(result["restore_points"]) == 2
    warning = result["warnings"][0]
    assert (warning["code"], warning["step"], warning["target"]) == ("snapshot.orphaned", "22", "vcenter")
    assert world.log.count("commit linux-vm") == 2  # a vCenter that does not answer is not asked for ever
    assert world.pendings[-1] == {"linux-vm": {"snapshot": True}}


def test_commit_is_tried_again() -> None:
    world = World()
    world.fail["commit", "linux-vm"] = ConnectRefused("backup-server to vcenter:443: refused")
    world.times["commit", "linux-vm"] = 2
    assert run(world)["result"] == "success"
    assert world.log.count("commit linux-vm") == 3 and world.pendings[-1] == {}


def test_disk_that_appears_and_disk_that_is_gone() -> None:
    world = World()
    world.known = {"db-vm": [disk("db-vm", 0), disk("db-vm", 7)], "linux-vm": [disk("linux-vm", 0)]}
    result = run(world)
    codes = [(w["vm"], w["code"]) for w in result["warnings"]]
    assert codes == [("db-vm", "job.disk-appeared"), ("db-vm", "job.disk-gone")]
    assert [d["key"] for p in result["restore_points"] if p["vm"] == "db-vm" for d in p["disks"]] == [2000, 2001]
    at = world.log.index
    assert at("vms all") < at("start target db-vm:2001") < at("start source db-vm:2001")
    assert at("start source db-vm:2001") < at("data.connect db-vm:2001") < at("snapshot linux-vm")
    left_clean(world)


def test_vm_that_is_gone_does_not_stop_the_others() -> None:
    world = World()
    world.vms = world.vms[1:]
    result = run(world)
    assert result["result"] == "failed" and result["error"]["code"] == "job.vm-missing"
    assert list(world.points) == ["linux-vm"]
    left_clean(world)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_tasks_take_turns_on_few_slots(slots: int) -> None:
    world = World()
    world.slots = {"proxy-1": slots, "repository-1": 3}
    assert run(world)["result"] == "success"
    assert world.most_reading <= slots
    left_clean(world)


def test_mover_on_the_repository_that_dies_fails_the_task() -> None:
    world = World()
    world.hang.add(("source.read", "linux-vm:2000"))
    movers = []
    opened = world.mover

    async def remember(server: dict[str, Any], *args: Any, **kw: Any) -> Any:
        movers.append((server["name"], kw["task"], await opened(server, *args, **kw)))
        return movers[-1][2]

    world.mover = remember  # type: ignore[method-assign]

    async def main() -> dict[str, Any]:
        world.reached["source.read", "linux-vm:2000"] = asyncio.Event()
        sequence = BackupSequence("s1", world, EventLog(None, host="h", process="manager"), commit_pauses=())
        job = asyncio.create_task(sequence.run())
        await asyncio.wait_for(world.reached["source.read", "linux-vm:2000"].wait(), 10)
        await next(m for s, t, m in movers if s == "repository-1" and t == "linux-vm:2000").close()
        return await asyncio.wait_for(job, 10)

    result = asyncio.run(main())
    assert result["error"]["code"] == "wire.closed" and "repository-1" in result["error"]["message"]
    assert "commit linux-vm" in world.log and list(world.points) == ["db-vm"]
    left_clean(world)


DEAD, ALIVE = "[ds] linux-vm/linux-vm-000001.vmdk", "[ds]linux-vm/linux-vm-000002.vmdk"


def left_behind(session: str) -> Snapshot:
    return Snapshot(f"snapshot-of-{session}", "vm-linux-vm", snapshots.NAME, 7, snapshots.description("demo", session))


def test_a_dead_runs_snapshot_is_committed_by_the_next_run_and_a_living_ones_is_not(tmp_path: Path) -> None:
    world = World()
    mine = Snapshot("snapshot-9", "vm-linux-vm", "before the update", 9, "made by a person")
    world.left["linux-vm"] = [left_behind("dead"), left_behind("alive"), mine]
    world.dead = {"dead"}
    result = run(world, tmp_path)
    assert result["result"] == "success" and result["warnings"] == []
    assert world.left["linux-vm"] == [left_behind("alive"), mine]
    assert world.log.index("commit linux-vm") < world.log.index("snapshot linux-vm")
    assert any("dead run dead committed" in str(item.get("text")) for item in world.progress)


def attached_by_two(world: World) -> None:
    """A dead run and a living one have snapshots, each with its disk attached to a proxy that the next run does not use."""
    world.facts["proxy-2"] = {"vm_uuid": PROXY_VM}
    world.modes["proxy-2"] = []
    world.left["linux-vm"] = [left_behind("dead"), left_behind("alive")]
    world.dead = {"dead"}
    world.froze = {"snapshot-of-dead": {2000: DEAD}, "snapshot-of-alive": {2000: ALIVE}}
    world.attached = {(PROXY_VM, path) for path in (DEAD, ALIVE, "[ds] web/web.vmdk")}


def test_a_dead_runs_disk_is_detached_from_any_proxy_before_its_snapshot_is_committed(tmp_path: Path) -> None:
    world = World()
    attached_by_two(world)
    result = run(world, tmp_path)
    assert result["result"] == "success" and result["warnings"] == []
    assert world.attached == {(PROXY_VM, ALIVE), (PROXY_VM, "[ds] web/web.vmdk")}
    assert world.left["linux-vm"] == [left_behind("alive")]
    places = [world.log.index(e) for e in (f"detach {PROXY_VM}", "commit linux-vm", "snapshot linux-vm")]
    assert places == sorted(places)
    assert any(
        item.get("step") == "8" and f"{DEAD} was left attached" in str(item.get("text")) for item in world.progress
    )


def test_a_dead_runs_disk_is_detached_also_when_its_snapshot_is_gone(tmp_path: Path) -> None:
    world = World()
    attached_by_two(world)
    world.left["linux-vm"] = [left_behind("alive")]
    assert run(world, tmp_path)["result"] == "success"
    assert (PROXY_VM, DEAD) not in world.attached and (PROXY_VM, ALIVE) in world.attached


def test_a_snapshot_stays_while_its_disk_cannot_be_detached(tmp_path: Path) -> None:
    world = World()
    attached_by_two(world)
    world.fail["detach", PROXY_VM] = VSphereFault("busy")
    result = run(world, tmp_path)
    assert result["result"] == "warning" and len(result["restore_points"]) == 2
    assert [w["code"] for w in result["warnings"]] == ["snapshot.orphaned"]
    assert world.left["linux-vm"] == [left_behind("dead"), left_behind("alive")]


def test_a_proxy_whose_disks_are_not_shown_does_not_stop_the_run(tmp_path: Path) -> None:
    world = World()
    attached_by_two(world)
    world.froze = {}
    world.fail["left", PROXY_VM] = VSphereFault("no permission")
    result = run(world, tmp_path)
    assert result["result"] == "success" and world.left["linux-vm"] == [left_behind("alive")]
    assert any("proxy-2 is not known: no permission" in str(item.get("text")) for item in world.progress)


def test_the_file_that_the_snapshot_froze_is_read(tmp_path: Path) -> None:
    """The one of step 8 is not the disk's any more when an older snapshot was committed since."""
    world = World()
    world.froze = {"snapshot-db-vm": {2001: "[ds] db-vm/db-vm_1-000004.vmdk"}}
    assert run(world, tmp_path)["result"] == "success"
    opened = {task: params["disk"]["path"] for method, task, params in world.calls if method == "source.open"}
    assert opened == {
        "linux-vm:2000": "[ds] linux-vm/linux-vm_0.vmdk",
        "db-vm:2000": "[ds] db-vm/db-vm_0.vmdk",
        "db-vm:2001": "[ds] db-vm/db-vm_1-000004.vmdk",
    }


def test_a_dead_runs_snapshot_that_stays_is_reported_and_the_run_goes_on(tmp_path: Path) -> None:
    world = World()
    world.left["linux-vm"] = [left_behind("dead")]
    world.dead = {"dead"}
    world.fail["commit", "linux-vm"] = VSphereFault("locked")
    world.times["commit", "linux-vm"] = 1
    result = run(world, tmp_path)
    assert result["result"] == "warning" and len(result["restore_points"]) == 2
    assert [w["code"] for w in result["warnings"]] == ["snapshot.orphaned"]
    assert world.left["linux-vm"] == [left_behind("dead")]
