# SPDX-License-Identifier: MIT
"""The sequence of a backup job, steps 2 to 22, in the order and under the numbers of `docs/sequence.md`.

    (Backup Service)              1           `engine.service.jobs.Jobs.launch`, which then starts this process
    run                           2  3  4     once a job
      start_tasks                 5a 5b 6  7  for all tasks (again for a disk that appears at step 8, or whose proxy is lost)
                                  8           once a job
      back_up_all                             VMs one after the other up to 16, guests first; then beside each other
        back_up                   9 to 16     per VM
          read_disks                          per VM: vCenter is asked what changed, the restore point begins, hidden
            _read                 17 to 21    per task, at the same time, as far as slots allow
                                              per VM: the restore point becomes visible
          leave_vm                22          per VM, whatever happened to it after 15 was asked for
    retain                                    per VM with a new restore point

Rules that hold everywhere: a task that fails fails its VM, but one whose proxy is lost is tried once on another; a VM that fails
does not stop the others; a guest that may be frozen is thawed, and a snapshot that may exist is committed, on every way out,
also when the job is stopped. Steps 18 to 21 are performed by the Data Movers, which write their events.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine import snapshots
from engine.errors import ConnectError, VadplabError
from engine.guest.channel import Scripts
from engine.manager import attached, results, tasks
from engine.manager.errors import DiskAppeared, DiskGone, ModeFailover, ModeNotPossible, VmMissing, as_error
from engine.manager.guest import GuestRun
from engine.manager.restore_point import RestorePoint, look_at_chain, retain
from engine.manager.run import Run
from engine.manager.tasks import DiskTask, VmRun
from engine.modes.names import HOTADD, NETWORK, SAN, usable
from engine.mover_steps import MoverSteps
from engine.report import JobStopped, what_is_left
from engine.vsphere.link import account
from engine.waiting import either, every, quietly, to_the_end, unless_closed, until_one_raises

STORE_DEADLINE = 600.0
OPEN_DEADLINE = 900.0
"""Seconds for steps 18 to 20 up to the open disk: a host without room is asked again, a disk is attached, modes fail over."""
IDLE = 60.0
"""Seconds without a sign of life of a Data Mover."""


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
            await retain(self)
        except asyncio.CancelledError:
            error = JobStopped(f"job {self.job.get('name', '')} was stopped")
        except Exception as exc:
            error = as_error(exc)
        with contextlib.suppress(asyncio.CancelledError):  # stopped when all is done: there is only this left to do
            await to_the_end(self.leave())
        for one in (error, *(r.error for r in self.vms)):
            if isinstance(one, JobStopped):
                one.next = f"{JobStopped.advice} {what_is_left(self.pending)}"
        return results.document(self.session, str(self.job.get("name", "")), self.vms, self.report.started, error)

    # Initialisation (section 1 of the sequence)

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
            self.vms = tasks.tasks_from(self.inputs)
            for vm in self.vms:
                vm.scripts = "off" if self.scripts is None else "not reached"
            result["vms"] = [r.name for r in self.vms]
            result["tasks"] = [t.id for t in self.all_tasks]
            self.raise_if_nothing_is_left()

    async def step_4_ask_for_resources(self) -> None:
        with self.report.step("4") as result:
            wanted = [
                {"id": t.id, "vm": t.vm, "mode": self.job["mode"], "failover": self.failover} for t in self.all_tasks
            ]
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
        """Also asks the repository for the newest restore points and its free space, before any data flows."""

        async def start(task: DiskTask) -> None:
            transport = await self.transport(task.repository, "5a")
            await look_at_chain(self, task, transport)
            self.ports[task.id, "target"] = await transport.start_mover(task.id, "target")

        await self.for_tasks("5a", started, start)

    async def step_5b_start_movers_on_proxy(self, started: list[DiskTask]) -> None:
        """A proxy whose Transport Service is not reached is lost: another one is asked for its tasks."""

        async def start(task: DiskTask) -> None:
            try:
                transport = await self.transport(task.proxy, "5b")
            except ConnectError as exc:
                other = await self.another_proxy(task, exc, step="5b")
                if other is None:
                    raise
                task.proxy = other
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
            alive = [r for r in self.vms if not r.failed]
            infos = {vm.name: vm for vm in await self.vsphere.vms([r.name for r in alive], step="8")}
            for vm in alive:
                vm.info = infos.get(vm.name)
                if vm.info is None:
                    vm.fail(VmMissing(f"VM {vm.name} is not in {self.inputs['vcenter']['name']}", step="8"))
                    continue
                new, gone = tasks.compare(vm, vm.info)
                for task in new:
                    self.same_resources(task)
                    self.warn(vm, DiskAppeared(f"{vm.name}: {task.disk.label} is new", step="8"))
                for task in gone:
                    self.warn(vm, DiskGone(f"{vm.name}: {task.disk.label} is gone", step="8"))
                    await self.end_movers([task])
                if not vm.tasks:
                    vm.fail(VmMissing(f"VM {vm.name} has no disks", step="8"))
                added += new
            self.raise_if_nothing_is_left()
            shown = await attached.left_on_proxies(self)
            for vm in [r for r in alive if not r.failed]:
                await self.commit_orphans(vm, shown)
            if self.job.get("cbt", True):
                for vm in [r for r in alive if not r.failed]:
                    await self.switch_tracking_on(vm)
        return added

    async def commit_orphans(self, vm: VmRun, shown: dict[str, list[str]]) -> None:
        """Part of step 8: disks that dead runs left attached are detached, then their snapshots, found by their marks, are committed.

        What stays is reported. `shown`: what is attached to proxies.
        """
        assert self.vsphere is not None and vm.info is not None
        try:
            there = await self.vsphere.snapshots(vm.info, step="8")
            marked = {snapshots.session_of(snapshot.description) for snapshot in there} - {None}
            dead = await self.peers.service.dead(sorted(str(one) for one in marked)) if marked else []
            living = [one for one in there if snapshots.session_of(one.description) not in dead]
            await attached.detach_of_dead(self, vm, shown, living)
            for session in dead:
                mark, timeout = snapshots.mark(session), self.job["snapshot_timeout"]
                count = await self.vsphere.commit_snapshots(vm.name, mark, timeout=timeout)
                self.report.note(
                    f"{vm.name}: {count} snapshots of the dead run {session} committed", step="8", vm=vm.name
                )
        except VadplabError as exc:
            left = f"{vm.name}: a snapshot of an earlier run, or a disk that it attached, stays: {exc.message}"
            self.warn(vm, snapshots.SnapshotOrphaned(left, step="8", host=exc.host, target=exc.target, port=exc.port))

    async def switch_tracking_on(self, vm: VmRun) -> None:
        """Part of step 8: changed block tracking, from this run's snapshot on. Without it disks are compared or read whole."""
        assert self.vsphere is not None and vm.info is not None
        if vm.info.uuid and vm.info.uuid.lower() in self.proxy_vms():
            vm.tracking_off = "the VM is a HotAdd proxy"
            return
        try:
            found = await self.vsphere.ensure_tracking(vm.info)
        except VadplabError as exc:
            vm.tracking_off = f"change tracking could not be switched on: {exc.message}"
        else:
            vm.tracking_off = "" if found.on else found.reason
            if found.switched:
                self.report.note(f"{vm.name}: change tracking is switched on", step="8", vm=vm.name)
        if vm.tracking_off:
            self.report.note(f"{vm.name}: {vm.tracking_off}", step="8", vm=vm.name)

    async def back_up_all(self) -> None:
        """Every VM: its guest and snapshot one after the other (guests first), its disks beside those of earlier VMs."""
        guests = {r.name: self.guest(r) for r in self.vms if r.info is not None and not r.failed}
        order = [r for r in self.vms if r.name in guests and not r.failed]
        order.sort(key=lambda r: not guests[r.name].wanted)
        running: list[asyncio.Task[None]] = []
        try:
            for vm in order:
                held = vm.tasks[0]
                await self.take_slots(held)
                released = asyncio.Event()
                running.append(asyncio.create_task(self.back_up(vm, guests[vm.name], held, released)))
                await either(released, running[-1])
            await until_one_raises(running)
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def back_up(self, vm: VmRun, guest: GuestRun, held: DiskTask, released: asyncio.Event) -> None:
        """Steps 9 to 22 of one VM. `released` is set when the next VM may begin; `held` is the task that has slots already."""
        turns = {held.id}
        try:
            try:
                self.step_9_windows_guest_address(vm)
                self.step_10_connect_to_windows_guest(vm)
                self.step_11_windows_guest_over_vix(vm)
                address = await self.step_12_guest_address(vm, guest)
                if address is not None:
                    await self.step_13_scripts_over_ssh(vm, guest, address)
                self.step_14_tools_quiescence(vm)
                await self.step_15_request_snapshot(vm)
            finally:
                await to_the_end(self.step_16_release_guest(vm, guest))
            released.set()
            await guest.thawed()
            await self.read_disks(vm, turns)  # 17 to 21, and the restore point becomes visible
        except Exception as exc:
            vm.fail(as_error(exc))
        except asyncio.CancelledError:
            vm.fail(JobStopped(f"{vm.name}: the job was stopped"))
            raise
        finally:
            if turns:
                self.give_slots(held)
            await to_the_end(self.leave_vm(vm))
            released.set()

    async def leave_vm(self, vm: VmRun) -> None:
        """Whatever became of the VM: its movers end, disks are detached from proxies, its snapshot is committed."""
        await self.end_movers(vm.tasks)
        await attached.detach_left(self, vm, step="22")
        await self.step_22_commit_snapshot(vm)

    # Guest processing (2): Windows guests (9 to 11) and Tools quiescence (14) are for a later version

    def step_9_windows_guest_address(self, vm: VmRun) -> None:
        self._skip_windows("9", vm)

    def step_10_connect_to_windows_guest(self, vm: VmRun) -> None:
        self._skip_windows("10", vm)

    def step_11_windows_guest_over_vix(self, vm: VmRun) -> None:
        """Never for a Linux guest: no failover from SSH to guest operations."""
        self._skip_windows("11", vm)

    def _skip_windows(self, step: str, vm: VmRun) -> None:
        windows = vm.info is not None and vm.info.guest.family == "windowsGuest"
        why = "Windows guests are for a later version" if windows else "it is no Windows guest"
        self.report.skipped(step, why, task=vm.name)

    async def step_12_guest_address(self, vm: VmRun, guest: GuestRun) -> str | None:
        if not guest.wanted:
            why = "guest processing is off" if self.scripts is None else "the VM is powered off"
            vm.scripts = "off"
            for step in ("12", "13"):
                self.report.skipped(step, why, task=vm.name)
            return None
        try:
            with self.report.step("12", task=vm.name):
                return guest.address()
        except VadplabError as exc:
            guest.warn(exc, self.report)
            self.report.skipped("13", "the guest cannot be reached: the scripts did not run", task=vm.name)
            return None

    async def step_13_scripts_over_ssh(self, vm: VmRun, guest: GuestRun, address: str) -> None:
        """Both scripts are uploaded before the freeze; a closed path or a failing script is a warning."""
        try:
            with self.report.step("13", task=vm.name):
                await guest.connect(self.peers, address)
                await self.remember(vm, guest=address)
                await guest.freeze()
        except VadplabError as exc:
            guest.warn(exc, self.report)
            await self.step_16_release_guest(vm, guest)  # whatever the script froze before it failed

    def step_14_tools_quiescence(self, vm: VmRun) -> None:
        self.report.skipped("14", "VMware Tools quiescence is not asked for", task=vm.name)

    # Snapshot (3)

    async def step_15_request_snapshot(self, vm: VmRun) -> None:
        assert self.vsphere is not None and vm.info is not None
        with self.report.step("15", task=vm.name) as result:
            await self.remember(vm, snapshot=True)
            vm.snapshot_requested = True
            vm.snapshot = await self.vsphere.create_snapshot(
                vm.info,
                snapshots.NAME,
                snapshots.description(self.job["name"], self.session),
                timeout=self.job["snapshot_timeout"],
            )
            result["snapshot"] = vm.snapshot.moref
            frozen = await self.vsphere.frozen_paths(vm.snapshot, step="15")
            for task in vm.tasks:  # a snapshot that was committed since step 8 may have changed the disk's file
                task.disk = replace(task.disk, path=frozen.get(task.disk.key) or task.disk.path)

    # Release (4)

    async def step_16_release_guest(self, vm: VmRun, guest: GuestRun) -> None:
        """At once after the snapshot, before any read; also after every failure. A guest that cannot be reached thaws itself."""
        if guest.needs_thaw:
            try:
                with self.report.step("16", task=vm.name):
                    await guest.thaw()
            except VadplabError as exc:
                guest.needs_thaw = False
                guest.warn(exc, self.report)
            else:
                await self.remember(vm, guest=None)
        elif guest.channel is None and vm.snapshot is not None:
            self.report.skipped("16", "no script ran before the snapshot", task=vm.name)
        await guest.close()

    # Transport (5)

    async def read_disks(self, vm: VmRun, turns: set[str]) -> None:
        """Steps 17 to 21 of every task, then the restore point becomes visible; a failed one leaves nothing behind."""
        point = RestorePoint(self, vm, await self.transport(vm.tasks[0].repository, "5a"))
        try:
            await point.choose_what_to_read()
            await point.begin()
            await every(self._read_in_turn(vm, task, turns) for task in vm.tasks)
            await point.make_visible()
        except BaseException:
            await point.give_up()
            raise
        await quietly(self.peers.service.learned({"vm": vm.name, "repository": vm.tasks[0].repository}))

    async def _read_in_turn(self, vm: VmRun, task: DiskTask, turns: set[str]) -> None:
        """One task in its slots; when its proxy is lost, once more on another one, with new Data Movers."""
        if task.id in turns:
            turns.discard(task.id)
        else:
            await self.take_slots(task)
        held = True
        try:
            try:
                return await self._read(vm, task)
            except VadplabError as exc:
                other = None
                if task.proxy_is_lost(exc):
                    other = await self.another_proxy(task, exc, step=exc.step or "17")
                if other is None:
                    raise
            await self.end_movers([task])
            await attached.detach_left(self, vm, task, step="22")  # part of what 22 clears up; row H1 knows it by that
            self.give_slots(task)
            held, task.proxy = False, other
            await self.take_slots(task)
            held = True
            await self.start_tasks([task])  # 5 to 7 once more, for this task alone
            if task.error is not None:
                raise task.error
            await self._read(vm, task)
        except Exception as exc:
            task.error = as_error(exc)
            raise
        finally:
            if held:
                self.give_slots(task)

    async def _read(self, vm: VmRun, task: DiskTask) -> None:
        """Steps 17 to 21 of one attempt."""
        steps = MoverSteps(self.report, task.id, task.proxy)
        at = "17"
        try:
            self.step_17_choose_transport_mode(task)
            at = "18"
            await self.step_18_19_20_open_disk(vm, task, steps)
            at = "21"
            await self.step_20_21_read_and_store(vm, task, steps)
        except BaseException as exc:
            steps.broken(exc, at)
            raise

    def step_17_choose_transport_mode(self, task: DiskTask) -> None:
        """What the job allows and this proxy can do, best first: Direct SAN, HotAdd, Network (`engine.modes.names`)."""
        able = self.servers[task.proxy]["modes"]
        task.modes = usable(str(self.job["mode"]), able, failover=self.failover)
        assert task.reading is not None
        text = f"{', then '.join(task.modes) or 'none'}; read by {task.reading.how}: {task.reading.reason}"
        with self.report.step(
            "17", task=task.id, text=text, modes=list(task.modes), read=task.reading.how, reason=task.reading.reason
        ):
            if not task.modes:
                raise ModeNotPossible(f"{task.id}: {task.proxy} cannot use mode {self.job['mode']}", host=task.proxy)

    async def step_18_19_20_open_disk(self, vm: VmRun, task: DiskTask, steps: MoverSteps) -> None:
        """Performed by the Data Mover on the proxy, which tells where it is; 20 begins here: the disk is opened.

        18   login and ticket: `engine.modes.opening.Opening._connect`, `engine.modes.ticket`
        19   902 and the configuration file: the same, with `engine.modes.network.NetworkSession`
        20a  Direct SAN: `engine.modes.san.open_source`, layout by `engine.modes.layout`
        20b  HotAdd: `engine.modes.hotadd.open_source`; it first detaches what crashed runs left attached to this proxy
        20c  Network: `engine.modes.network.NetworkSession.open_disk`
        """
        assert task.source is not None and vm.info is not None and vm.snapshot is not None
        vcenter = self.inputs["vcenter"]
        await attached.remember(self, vm, task)
        opened = await task.source.call(
            "source.open",
            step="18",
            deadline=OPEN_DEADLINE,
            idle=IDLE,
            on_progress=steps.heard,
            modes=list(task.modes),
            failover=self.failover,
            vcenter=account(vcenter),
            vm={"name": vm.name, "moref": vm.info.moref, "uuid": vm.info.uuid},
            snapshot=vm.snapshot.moref,
            disk={"key": task.disk.key, "path": task.disk.path, "capacity": task.disk.capacity},
            vmx=vm.info.vmx,
        )
        task.vmx, task.mode, task.failed_over = opened["vmx"], opened["mode"], list(opened.get("failed_over") or [])
        for one in task.failed_over:
            text = f"{task.id}: {one['mode']} is not possible ({one['message']}); read by {task.mode}"
            self.warn(vm, ModeFailover(text, step="17", host=task.proxy))
        for step, modes in (("20a", (SAN,)), ("20b", (HOTADD,)), ("20c", NETWORK)):
            if task.mode not in modes and not any(one["mode"] in modes for one in task.failed_over):
                self.report.skipped(step, f"the disk is read in {task.mode} mode", task=task.id)
        if opened["capacity"] != task.disk.capacity:
            self.report.note(f"{task.id}: the host says {opened['capacity']} bytes", step="19", task=task.id)

    async def step_20_21_read_and_store(self, vm: VmRun, task: DiskTask, steps: MoverSteps) -> None:
        """Performed by both Data Movers: 20a, 20b or 20c goes on and reads, 21 sends on the connection of step 7.

        On the proxy `engine.mover.source_side` and `source_pipeline`; on the repository `engine.mover.target_pipeline`, which
        writes with `engine.store.target`.
        """
        assert task.source is not None and task.target is not None and vm.base is not None and task.reading is not None
        how = task.reading
        below = None
        if how.incremental:
            assert vm.base.parent is not None
            below = {"folder": vm.base.parent["folder"], "disk": task.disk.key}
        await task.target.call(
            "target.open",
            step="21",
            folder=vm.folder,
            file=f"disk-{task.disk.key}.qcow2",
            size=task.disk.capacity,
            parent=below,
        )

        def heard(item: dict[str, Any]) -> None:
            steps.heard(item)
            if "read" in item:
                self.report.moved(task.id, int(item["read"]), int(item.get("total", 0)))

        work = task.source.call(
            "source.read",
            step="21",
            deadline=None,
            idle=IDLE,
            on_progress=heard,
            ranges=[list(one) for one in how.ranges] if how.ranges is not None else None,
            incremental=how.incremental,
            compare=how.how == "compare",
        )
        task.moved = await unless_closed(
            work, task.target, f"{task.id}: the Data Mover on {task.repository} ended", step="21"
        )
        await attached.forget(self, vm, task)
        task.stored = await task.target.call(
            "target.commit", step="21", deadline=None, idle=STORE_DEADLINE, root=task.moved.get("root")
        )

    # Commit (6)

    async def step_22_commit_snapshot(self, vm: VmRun) -> None:
        """Tried after every failure of 15 to 21. When it fails the backup stays, and the snapshot is reported as orphaned."""
        if not vm.snapshot_requested or self.vsphere is None:
            return
        try:
            with self.report.step("22", task=vm.name) as result:
                await self.vsphere.settle()
                result["snapshots"] = await snapshots.commit(
                    self.vsphere,
                    vm.name,
                    self.session,
                    timeout=self.job["snapshot_timeout"],
                    pauses=self.commit_pauses,
                )
        except Exception as failure:
            exc = as_error(failure)
            vm.orphan = True
            which = f"snapshot {vm.snapshot.moref}" if vm.snapshot else "a snapshot"
            orphaned = snapshots.SnapshotOrphaned(
                f"{vm.name}: {which} may stay: {exc.message}",
                step="22",
                host=exc.host,
                target=exc.target,
                port=exc.port,
            )
            self.warn(vm, orphaned)
        else:
            await self.remember(vm, snapshot=False)
