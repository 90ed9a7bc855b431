# SPDX-License-Identifier: MIT
"""The restore point of one VM: what it may stand on (5a); between 16 and 22 its hidden beginning and visible end; retention.

`kind` and `parent` of a point are decided by `reading.base`, how each disk is read by `reading.intend` and `reading.settled`.
"""

from __future__ import annotations

import asyncio

from engine.errors import VadplabError
from engine.manager import reading, results
from engine.manager.errors import NoSpace, RetentionFailed, as_error
from engine.manager.peers import Transport
from engine.manager.run import Run
from engine.manager.tasks import DiskTask, VmRun
from engine.store.points import new_point_id
from engine.waiting import quietly, to_the_end

CHAIN_UNUSABLE = ("store.parent", "store.locked")
"""Why the repository refuses an incremental: then a full is made."""
COMMIT_PATIENCE = 60.0
"""Seconds that a stop waits for the repository to answer whether the restore point became visible."""


async def look_at_chain(run: Run, task: DiskTask, transport: Transport) -> None:
    """Part of step 5a, once a VM: asks the repository what a new point could stand on, and whether there is room. Raises NoSpace."""
    vm = run.vm_of(task)
    async with run.chains.setdefault(vm.name, asyncio.Lock()):
        if vm.newest is None:
            vm.newest = await transport.newest_point(run.job["name"], vm.name, vm.capacity)
    full = bool(run.job.get("full")) or vm.newest["point"] is None
    need, free = int(vm.newest["need" if full else "need_incremental"]), int(vm.newest["free"])
    if need > free:
        raise NoSpace(
            f"{vm.name}: {task.repository} has {free >> 20} MiB free, a new restore point needs about {need >> 20} MiB",
            step="5a",
            host=task.repository,
        )


class RestorePoint:
    """The new restore point of `vm`, on the connection of step 5a.

    Its events carry the numbers of the steps whose connections they use: 15 what vCenter is asked, 21 the beginning and the end;
    the note of what it stands on is 17.
    """

    def __init__(self, run: Run, vm: VmRun, transport: Transport) -> None:
        self._run = run
        self._vm = vm
        self._transport = transport
        self._job = str(run.job["name"])

    async def choose_what_to_read(self) -> None:
        """Full or incremental, and of each disk: what vCenter says has changed, or a comparison, or all.

        Change IDs and areas are asked for over the session of step 15; a refusal costs time, never correctness.
        """
        vm, vsphere = self._vm, self._run.vsphere
        assert vsphere is not None and vm.info is not None and vm.snapshot is not None
        newest = vm.newest or {}
        full = bool(self._run.job.get("full"))
        vm.base = reading.base(newest.get("point"), newest.get("problem"), full=full, uuid=vm.info.uuid)
        wanted = bool(self._run.job.get("cbt", True))
        ids: dict[int, str] = {}
        if wanted:
            try:
                ids = await vsphere.change_ids(vm.snapshot)
            except VadplabError as exc:
                vm.tracking_off = f"the change IDs cannot be read: {exc.message}"
        for task in vm.tasks:
            task.change_id = ids.get(task.disk.key)
            await self._choose_reading(task, wanted)

    async def _choose_reading(self, task: DiskTask, wanted: bool) -> None:
        vm, vsphere = self._vm, self._run.vsphere
        assert vsphere is not None and vm.snapshot is not None and vm.base is not None
        below = vm.base.disk(task.disk.key)
        intent = reading.intend(task.disk.capacity, task.change_id, below, wanted=wanted, off=vm.tracking_off)
        ranges, refusal = None, None
        if intent.since is not None:
            try:
                ranges = await vsphere.changed_areas(vm.snapshot, task.disk.key, intent.since, task.disk.capacity)
            except VadplabError as exc:
                refusal = exc
        task.reading = reading.settled(intent, ranges, refusal)

    async def begin(self) -> None:
        """Begins it on the repository, with space kept free; a chain that cannot be used makes it a full."""
        vm, point = self._vm, new_point_id()
        try:
            vm.folder = await self._begin(point)
        except VadplabError as exc:
            if not self._full_instead(exc):
                raise
            vm.newest = {**(vm.newest or {}), "problem": exc.message}
            await self.choose_what_to_read()
            vm.folder = await self._begin(point)
        vm.point = point
        assert vm.base is not None
        why = f": {vm.base.reason}" if vm.base.reason else f" on {vm.base.point}"
        self._run.report.note(f"{vm.name}: {vm.base.kind} restore point {point}{why}", step="17", vm=vm.name)

    async def _begin(self, point: str) -> str:
        vm = self._vm
        assert vm.base is not None
        data = sum((t.reading.bytes or 0) if t.reading else 0 for t in vm.tasks)
        try:
            return await self._transport.begin_point(
                self._job, vm.name, point, parent=vm.base.point, data=data, capacity=vm.capacity
            )
        except VadplabError as exc:
            exc.step = exc.step or "21"
            if not self._full_instead(exc):
                self._run.report.failed("21", task=vm.name, error=exc)
            raise

    def _full_instead(self, error: VadplabError) -> bool:
        assert self._vm.base is not None
        return self._vm.base.parent is not None and error.to_dict()["code"] in CHAIN_UNUSABLE

    async def make_visible(self) -> None:
        """The last part of step 21: the repository checks and syncs everything, then renames the folder.

        A stop that comes meanwhile waits for the answer: a point that has become visible is one that the result names.
        """
        vm = self._vm
        assert vm.point is not None
        point = vm.point

        async def commit() -> None:
            manifest = results.manifest(self._run.session, self._job, vm)
            await self._transport.commit_point(self._job, vm.name, point, manifest)
            vm.point_visible = True

        try:
            await to_the_end(commit(), patience=COMMIT_PATIENCE)
        except VadplabError as exc:
            exc.step = exc.step or "21"
            self._run.report.failed("21", task=vm.name, error=exc)
            raise

    async def give_up(self) -> None:
        """Leaves nothing behind, unless the point is visible already; never raises."""
        if self._vm.point is not None and not self._vm.point_visible:
            await quietly(self._transport.abort_point(self._job, self._vm.name, self._vm.point))


async def retain(run: Run) -> None:
    """After the sequence: retention on the repository for VMs with a new restore point; a failure is a warning."""
    settings = run.job.get("retention") or {}
    policy = {name: settings[k] for k, name in (("points", "count"), ("days", "days")) if settings.get(k)}
    for vm in run.vms:
        if not policy or not vm.point_visible:
            continue
        try:
            transport = await run.transport(vm.tasks[0].repository, "5a")
            done = await transport.retain(run.job["name"], vm.name, policy)
        except Exception as exc:
            error = as_error(exc)
            run.warn(vm, RetentionFailed(f"{vm.name}: {error.message}", host=vm.tasks[0].repository))
        else:
            if done["removals"]:
                gone = len(done["removals"])
                text = f"{vm.name}: retention removed {gone} restore point{'s' * (gone != 1)}"
                run.report.note(text, step="22", vm=vm.name, **done)
