# SPDX-License-Identifier: MIT
"""The sequence of a backup job, steps 2 to 22, in the order and under the numbers of `docs/sequence.md`.

    run                           2  3  4     once a job
      start_tasks                 5a 5b 6  7  for all tasks (again for a disk that appears at step 8)
                                  8           once a job
      back_up                     12 13 15 16 per VM, one after the other, guests first
        read_disks                17-21       per task, at the same time, as far as slots allow
                                  22          per VM, whatever happened to it after 15 was asked for

Rules that hold everywhere: a task that fails fails its VM; a VM that fails does not stop the others; a guest that may be frozen is
thawed, and a snapshot that may exist is committed, on every way out, also when the job is stopped. Steps 18-21 are performed
by the Data Movers, which write their events. Steps 9-11 and 14 are for Windows guests and Tools quiescence.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from engine.errors import VadplabError
from engine.guest.channel import Scripts
from engine.manager import snapshot, tasks
from engine.manager.guest import GuestRun
from engine.manager.peers import Transport
from engine.manager.report import document, manifest, new_point_id
from engine.manager.run import Run
from engine.manager.tasks import DiskTask, VmRun
from engine.manager.waiting import either, every, quietly, to_the_end, unless_closed, until_one_raises

STORE_DEADLINE = 600.0
OPEN_DEADLINE = 60.0
IDLE = 60.0
MOVER_STEPS = ("18", "19", "20c", "21")
"""Performed by the Data Movers."""


class JobStopped(VadplabError):
    """The job was stopped before it was done."""

    code = "job.stopped"
    symptom = "stopped"
    advice = "Run the job again; nothing of this run is left behind."


class DiskAppeared(VadplabError):
    """vCenter shows a disk that the configuration database does not know: it is backed up in the same run."""

    code = "job.disk-appeared"
    symptom = "new disk"
    advice = "Run `infra rescan` so that the next run knows it from the start."


class DiskGone(VadplabError):
    """The configuration database knows a disk that vCenter no longer shows."""

    code = "job.disk-gone"
    symptom = "disk is gone"
    advice = "Run `infra rescan`; if the disk should be there, look at the VM in vCenter."


class BackupSequence(Run):
    """One run of one job: the steps. `run` gives its result document; cancelling it stops the job and still cleans up."""

    async def run(self) -> dict[str, Any]:
        """The whole job. Gives the result document (`vadplab.job-result/1`); never raises an error of the catalogue."""
        error: VadplabError | None = None
        try:
            self.step_2_manager_process_starts()
            await self.step_3_read_job_and_make_tasks()
            await self.step_4_ask_for_resources()
            await self.start_tasks(self.all_tasks)  # 5a, 5b, 6, 7
            new = await self.step_8_gather_metadata()
            await self.start_tasks(new)
            await self.back_up_all()  # 9 to 22
        except VadplabError as exc:
            error = exc
        except asyncio.CancelledError:
            error = JobStopped(f"job {self.job.get('name', '')} was stopped")
        except Exception as exc:
            traceback.print_exc(file=sys.stderr)
            error = VadplabError(f"{type(exc).__name__} in the Backup Manager")
        with contextlib.suppress(asyncio.CancelledError):  # stopped when all is done: there is only this left to do
            await to_the_end(self.leave())
        return document(self.session, str(self.job.get("name", "")), self.runs, self.report.started, error)

    # 1  initialisation

    def step_2_manager_process_starts(self) -> None:
        with self.report.step("2"):
            pass  # this process runs: the Backup Service has started it

    async def step_3_read_job_and_make_tasks(self) -> None:
        with self.report.step("3") as result:
            self.inputs = await self.peers.service.job()
            self.job = self.inputs["job"]
            self.servers = {s["name"]: s for s in self.inputs["servers"]}
            guest = self.job["guest"]
            if guest["enabled"]:
                self.scripts = Scripts.load(
                    Path(guest["pre_freeze"]),
                    Path(guest["post_thaw"]),
                    timeout=guest["timeout"],
                    thaw_after=guest["thaw_after"],
                )
            self.runs = tasks.tasks_from(self.inputs)
            result["vms"] = [r.name for r in self.runs]
            result["tasks"] = [t.id for t in self.all_tasks]
            self.raise_if_nothing_is_left()

    async def step_4_ask_for_resources(self) -> None:
        with self.report.step("4") as result:
            wanted = [{"id": t.id, "vm": t.vm, "mode": self.job["mode"]} for t in self.all_tasks]
            plan = await self.peers.service.acquire(wanted)
            tasks.assign(self.all_tasks, plan["assignments"])
            self.slots = {name: asyncio.Semaphore(n) for name, n in plan["slots"].items()}
            result["slots"] = plan["slots"]

    async def start_tasks(self, started: list[DiskTask]) -> None:
        """Steps 5 to 7 for these tasks."""
        if started:
            await self.step_5a_start_movers_on_repository(started)
            await self.step_5b_start_movers_on_proxy(started)
            await self.step_6_connect_to_movers(started)
            await self.step_7_movers_connect_to_each_other(started)

    async def step_5a_start_movers_on_repository(self, started: list[DiskTask]) -> None:
        async def start(task: DiskTask) -> None:
            transport = await self.transport(task.repository, "5a")
            self.ports[task.id, "target"] = await transport.start_mover(task.id, "target")

        await self.for_tasks("5a", started, start)

    async def step_5b_start_movers_on_proxy(self, started: list[DiskTask]) -> None:
        async def start(task: DiskTask) -> None:
            transport = await self.transport(task.proxy, "5b")
            self.ports[task.id, "source"] = await transport.start_mover(task.id, "source")

        await self.for_tasks("5b", started, start)

    async def step_6_connect_to_movers(self, started: list[DiskTask]) -> None:
        rules = self.rules()

        async def connect(task: DiskTask) -> None:
            task.target = await self.mover(task, task.repository, "target")
            task.source = await self.mover(task, task.proxy, "source")
            for mover in task.movers:
                await mover.call("rules", step="6", **rules)

        await self.for_tasks("6", started, connect)

    async def step_7_movers_connect_to_each_other(self, started: list[DiskTask]) -> None:
        async def connect(task: DiskTask) -> None:
            assert task.source is not None and task.target is not None
            if self.job["direction"] == "proxy-to-repository":
                listener, caller, name = task.target, task.source, task.repository
            else:
                listener, caller, name = task.source, task.target, task.proxy
            with self.report.step("7", task=task.id, direction=self.job["direction"]):
                at = await listener.call("data.listen", step="7")
                await caller.call(
                    "data.connect",
                    step="7",
                    host=self.servers[name]["address"],
                    port=at["port"],
                    token=at["token"],
                    name=name,
                )

        await self.for_tasks(None, started, connect)

    async def step_8_gather_metadata(self) -> list[DiskTask]:
        """Compares the tasks with what vCenter shows; gives tasks for disks that nobody knew."""
        added: list[DiskTask] = []
        with self.report.step("8"):
            self.vsphere = await self.peers.vsphere(self.inputs["vcenter"], step="8")
            alive = [r for r in self.runs if not r.failed]
            infos = {vm.name: vm for vm in await self.vsphere.vms([r.name for r in alive], step="8")}
            for run in alive:
                run.info = infos.get(run.name)
                if run.info is None:
                    run.fail(tasks.VmMissing(f"VM {run.name} is not in {self.inputs['vcenter']['name']}", step="8"))
                    continue
                new, gone = tasks.compare(run, run.info)
                for task in new:
                    self.same_resources(task)
                    self.warn(run, DiskAppeared(f"{run.name}: {task.disk.label} is new", step="8"))
                for task in gone:
                    self.warn(run, DiskGone(f"{run.name}: {task.disk.label} is gone", step="8"))
                    await self.end_movers([task])
                if not run.tasks:
                    run.fail(tasks.VmMissing(f"VM {run.name} has no disks", step="8"))
                added += new
            self.raise_if_nothing_is_left()
        return added

    async def back_up_all(self) -> None:
        """Every VM: its guest and snapshot one after the other (guests first), its disks beside those of earlier VMs."""
        for step in ("9", "10", "11"):
            self.report.skipped(step, "no Windows guest is processed in this job")
        guests = {r.name: self.guest(r) for r in self.runs if r.info is not None and not r.failed}
        order = [r for r in self.runs if r.name in guests and not r.failed]
        order.sort(key=lambda r: not guests[r.name].wanted)
        running: list[asyncio.Task[None]] = []
        try:
            for run in order:
                held = run.tasks[0]
                await self.take_slots(held)
                released = asyncio.Event()
                running.append(asyncio.create_task(self.back_up(run, guests[run.name], held, released)))
                await either(released, running[-1])
            await until_one_raises(running)
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def back_up(self, run: VmRun, guest: GuestRun, held: DiskTask, released: asyncio.Event) -> None:
        """Steps 12 to 22 of one VM. `released` is set when the next VM may begin; `held` is the task that has slots already."""
        turns = {held.id}
        try:
            try:
                address = await self.step_12_guest_address(run, guest)
                if address is not None:
                    await self.step_13_scripts_over_ssh(run, guest, address)
                self.report.skipped("14", "VMware Tools quiescence is not asked for", task=run.name)
                await self.step_15_request_snapshot(run)
            finally:
                await to_the_end(self.step_16_release_guest(run, guest))
            released.set()
            await guest.thawed()
            await self.read_disks(run, turns)  # 17 to 21, and the restore point becomes visible
        except VadplabError as exc:
            run.fail(exc)
        except asyncio.CancelledError:
            run.fail(JobStopped(f"{run.name}: the job was stopped"))
            raise
        finally:
            if turns:
                self.give_slots(held)
            await to_the_end(self.leave_vm(run))
            released.set()

    async def leave_vm(self, run: VmRun) -> None:
        """Whatever became of the VM: its movers end, its snapshot is committed."""
        await self.end_movers(run.tasks)
        await self.step_22_commit_snapshot(run)

    # 2  guest processing

    async def step_12_guest_address(self, run: VmRun, guest: GuestRun) -> str | None:
        if not guest.wanted:
            why = "guest processing is off" if self.scripts is None else "the VM is powered off"
            for step in ("12", "13"):
                self.report.skipped(step, why, task=run.name)
            return None
        try:
            with self.report.step("12", task=run.name):
                return guest.address()
        except VadplabError as exc:
            guest.warn(exc, self.report)
            self.report.skipped("13", "the guest cannot be reached: the scripts did not run", task=run.name)
            return None

    async def step_13_scripts_over_ssh(self, run: VmRun, guest: GuestRun, address: str) -> None:
        """Both scripts are uploaded before the freeze; a closed path or a failing script is a warning."""
        try:
            with self.report.step("13", task=run.name):
                await guest.connect(self.peers, address)
                await self.remember(run, guest=address)
                await guest.freeze()
        except VadplabError as exc:
            guest.warn(exc, self.report)
            await self.step_16_release_guest(run, guest)  # whatever the script froze before it failed

    # 3  snapshot

    async def step_15_request_snapshot(self, run: VmRun) -> None:
        assert self.vsphere is not None and run.info is not None
        with self.report.step("15", task=run.name) as result:
            await self.remember(run, snapshot=True)
            run.snapshot_requested = True
            run.snapshot = await self.vsphere.create_snapshot(
                run.info,
                snapshot.NAME,
                snapshot.description(self.job["name"], self.session),
                timeout=self.job["snapshot_timeout"],
            )
            result["snapshot"] = run.snapshot.moref

    # 4  release

    async def step_16_release_guest(self, run: VmRun, guest: GuestRun) -> None:
        """At once after the snapshot, before any read; also after every failure. A guest that cannot be reached thaws itself."""
        if guest.needs_thaw:
            try:
                with self.report.step("16", task=run.name):
                    await guest.thaw()
            except VadplabError as exc:
                guest.needs_thaw = False
                guest.warn(exc, self.report)
            else:
                await self.remember(run, guest=None)
        elif guest.channel is None and run.snapshot is not None:
            self.report.skipped("16", "no script ran before the snapshot", task=run.name)
        await guest.close()

    # 5  transport

    async def read_disks(self, run: VmRun, turns: set[str]) -> None:
        """Steps 17 to 21 of every task, then the restore point becomes visible; a failed one leaves nothing behind."""
        point = new_point_id()
        repository = run.tasks[0].repository
        transport = await self.transport(repository, "5a")
        begun = asyncio.Lock()

        async def folder() -> str:
            async with begun:
                if run.point is None:
                    run.folder = await transport.begin_point(self.job["name"], run.name, point)
                    run.point = point
            return run.folder

        try:
            await every(self._read_in_turn(run, task, turns, folder) for task in run.tasks)
            await self._make_point_visible(run, transport)
            await quietly(self.peers.service.learned({"vm": run.name, "repository": repository}))
        except BaseException:
            if run.point is not None and not run.point_visible:
                await quietly(transport.abort_point(self.job["name"], run.name, point))
            raise

    async def _make_point_visible(self, run: VmRun, transport: Transport) -> None:
        assert run.point is not None
        name = str(self.job["name"])
        try:
            await transport.commit_point(name, run.name, run.point, manifest(self.session, name, run))
        except VadplabError as exc:
            exc.step = exc.step or "21"
            self.report.performed("21", task=run.name, error=exc)
            raise
        run.point_visible = True

    async def _read_in_turn(
        self, run: VmRun, task: DiskTask, turns: set[str], folder: Callable[[], Awaitable[str]]
    ) -> None:
        if task.id in turns:
            turns.discard(task.id)
        else:
            await self.take_slots(task)
        try:
            mode = self.step_17_choose_transport_mode(task)
            await self.step_18_19_ticket_and_configuration(run, task, mode)
            self.report.performed("18", "19", task=task.id)
            await self.step_20_21_read_and_store(task, await folder())
            self.report.performed("20c", "21", task=task.id)
        except VadplabError as exc:
            task.error = exc
            if exc.step in MOVER_STEPS:
                done = MOVER_STEPS[MOVER_STEPS.index("20c" if exc.step in ("20c", "21") else "18") :]
                self.report.performed(*done, task=task.id, error=exc)
            raise
        finally:
            self.give_slots(task)

    def step_17_choose_transport_mode(self, task: DiskTask) -> str:
        mode = str(self.job["mode"])
        with self.report.step("17", task=task.id, text=f"network mode ({mode})", mode=mode):
            pass  # Network mode is the only one that proxies of this version can use
        self.report.skipped("20a", "not in SAN mode", task=task.id)
        self.report.skipped("20b", "not in HotAdd mode", task=task.id)
        return mode

    async def step_18_19_ticket_and_configuration(self, run: VmRun, task: DiskTask, mode: str) -> None:
        """Performed by the mover on the proxy: login and ticket (18), 902 and the .vmx file (19), then the disk is open."""
        assert task.source is not None and run.info is not None and run.snapshot is not None
        vcenter = self.inputs["vcenter"]
        opened = await task.source.call(
            "source.open",
            step="19",
            deadline=OPEN_DEADLINE,
            mode=mode,
            vcenter={k: vcenter[k] for k in ("name", "address", "port", "thumbprint", "username", "password")},
            vm={"name": run.name, "moref": run.info.moref, "uuid": run.info.uuid},
            snapshot=run.snapshot.moref,
            disk={"key": task.disk.key, "path": task.disk.path, "capacity": task.disk.capacity},
            vmx=run.info.vmx,
        )
        task.vmx = opened["vmx"]
        if opened["capacity"] != task.disk.capacity:
            self.report.note(f"{task.id}: the host says {opened['capacity']} bytes", step="19", task=task.id)

    async def step_20_21_read_and_store(self, task: DiskTask, folder: str) -> None:
        """Performed by both movers: the source reads (20c) and sends on the connection of step 7 (21)."""
        assert task.source is not None and task.target is not None
        await task.target.call(
            "target.open", step="21", folder=folder, file=f"disk-{task.disk.key}.qcow2", size=task.disk.capacity
        )
        reading = task.source.call(
            "source.read",
            step="20c",
            deadline=None,
            idle=IDLE,
            on_progress=lambda p: self.report.moved(task.id, int(p.get("read", 0)), int(p.get("total", 0))),
        )
        task.moved = await unless_closed(
            reading, task.target, f"{task.id}: the Data Mover on {task.repository} ended", step="21"
        )
        task.stored = await task.target.call(
            "target.commit", step="21", deadline=None, idle=STORE_DEADLINE, root=task.moved.get("root")
        )

    # 6  commit

    async def step_22_commit_snapshot(self, run: VmRun) -> None:
        """Tried after every failure of 15 to 21. When it fails the backup stays, and the snapshot is reported as orphaned."""
        if not run.snapshot_requested or self.vsphere is None:
            return
        try:
            with self.report.step("22", task=run.name) as result:
                await self.vsphere.settle()
                result["snapshots"] = await snapshot.commit(
                    self.vsphere,
                    run.name,
                    self.session,
                    timeout=self.job["snapshot_timeout"],
                    pauses=self.commit_pauses,
                )
        except VadplabError as exc:
            run.orphan = True
            which = f"snapshot {run.snapshot.moref}" if run.snapshot else "a snapshot"
            orphaned = snapshot.SnapshotOrphaned(
                f"{run.name}: {which} may stay: {exc.message}",
                step="22",
                host=exc.host,
                target=exc.target,
                port=exc.port,
            )
            self.warn(run, orphaned)
        else:
            await self.remember(run, snapshot=False)
