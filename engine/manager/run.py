# SPDX-License-Identifier: MIT
"""What the sequence stands on: connections that are kept, slots, movers, and the books with the Backup Service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from engine.errors import VadplabError
from engine.events import EventLog
from engine.guest.channel import Scripts
from engine.manager import snapshot
from engine.manager.guest import GuestRun
from engine.manager.peers import Mover, Peers, Transport, VSphere
from engine.manager.report import Reporter
from engine.manager.tasks import DiskTask, VmRun
from engine.manager.waiting import quietly


class Run:
    """One run of one job: everything but the steps. `commit_pauses`: seconds between attempts of step 22."""

    def __init__(
        self, session: str, peers: Peers, events: EventLog, *, commit_pauses: Sequence[float] = snapshot.PAUSES
    ) -> None:
        self.session = session
        self.peers = peers
        self.report = Reporter(events, peers.service.progress)
        self.commit_pauses = tuple(commit_pauses)
        self.inputs: dict[str, Any] = {}
        self.job: dict[str, Any] = {}
        self.servers: dict[str, dict[str, Any]] = {}
        self.scripts: Scripts | None = None
        self.runs: list[VmRun] = []
        self.slots: dict[str, asyncio.Semaphore] = {}
        self.vsphere: VSphere | None = None
        self.ports: dict[tuple[str, str], tuple[int, str]] = {}
        """(task id, role) → port and token of a started mover."""
        self._transports: dict[str, asyncio.Task[Transport]] = {}
        self._pending: dict[str, dict[str, Any]] = {}

    @property
    def all_tasks(self) -> list[DiskTask]:
        """Tasks of every VM that has not failed."""
        return [t for r in self.runs if not r.failed for t in r.tasks]

    async def for_tasks(
        self, step: str | None, started: list[DiskTask], action: Callable[[DiskTask], Awaitable[None]]
    ) -> None:
        """Runs `action` for each task at the same time, within `step` (None: the action marks its own).

        An error fails the task's VM and ends its movers; when no VM is left the first VM's error is raised.
        """
        by_name = {r.name: r for r in self.runs}
        errors: list[VadplabError] = []

        async def one(task: DiskTask) -> None:
            try:
                await action(task)
            except VadplabError as exc:
                task.error = exc
                exc.step = exc.step or step
                by_name[task.vm].fail(exc)
                errors.append(exc)

        async def all_of_them() -> None:
            await asyncio.gather(*(one(t) for t in started if not by_name[t.vm].failed))
            if errors:
                raise errors[0]

        try:
            if step is None:
                await all_of_them()
            else:
                with self.report.step(step):
                    await all_of_them()
        except VadplabError:
            for run in self.runs:
                if run.failed:
                    await self.end_movers(run.tasks)
            self.raise_if_nothing_is_left()

    def raise_if_nothing_is_left(self) -> None:
        """Raises the first VM's error when every VM has failed."""
        if self.runs and all(r.failed for r in self.runs):
            raise next(r.error for r in self.runs if r.error is not None)

    async def transport(self, server: str, step: str) -> Transport:
        """The one connection to a server's Transport Service; a failed attempt fails everyone who waits for it."""
        if server not in self._transports:
            self._transports[server] = asyncio.create_task(self._open_transport(server, step))
        return await asyncio.shield(self._transports[server])

    async def mover(self, task: DiskTask, server: str, role: str) -> Mover:
        """Step 6: the control connection to a started mover."""
        port, token = self.ports[task.id, role]
        return await self.peers.mover(self.servers[server], port, token, step="6", task=task.id)

    async def end_movers(self, ended: Sequence[DiskTask]) -> None:
        """Closes control connections, which ends the movers, and lets the Transport Services reap them; never raises."""
        for task in ended:
            for mover in task.movers:
                await quietly(mover.close())
            task.source = task.target = None
            for server, role in ((task.proxy, "source"), (task.repository, "target")):
                transport = self._opened(server)
                if self.ports.pop((task.id, role), None) is not None and transport is not None:
                    await quietly(transport.stop_mover(task.id))

    async def leave(self) -> None:
        """Ends every connection and gives the slots back; never raises."""
        await self.end_movers([t for r in self.runs for t in r.tasks])
        for server, opening in self._transports.items():
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            if transport := self._opened(server):
                await quietly(transport.close())
        if self.vsphere is not None:
            await quietly(self.vsphere.logout())
        await quietly(self.peers.service.release())

    def rules(self) -> dict[str, Any]:
        """Step 6: the rules that movers obey."""
        rules = self.job["rules"]
        return {
            "throttle": rules["throttle"],
            "compression": {"algorithm": "zstd", "level": rules["compression_level"]},
            "cluster_bits": rules["cluster_bits"],
            "workers": rules["workers"],
        }

    def same_resources(self, task: DiskTask) -> None:
        """A disk that appeared at step 8 shares the proxy, the repository and the slots that the job already holds."""
        assigned = [t for r in self.runs for t in r.tasks if t.proxy]
        beside = next((t for t in assigned if t.vm == task.vm), assigned[0])
        task.proxy, task.repository = beside.proxy, beside.repository

    def guest(self, run: VmRun) -> GuestRun:
        """The guest of a VM, not connected yet."""
        assert run.info is not None
        account = self.inputs["guests"].get(run.name)
        return GuestRun(run, run.info, self.job["guest"], account, self.scripts)

    async def take_slots(self, task: DiskTask) -> None:
        """Waits for the task's turn on its proxy, then on its repository."""
        await self.slots[task.proxy].acquire()
        try:
            await self.slots[task.repository].acquire()
        except BaseException:
            self.slots[task.proxy].release()
            raise

    def give_slots(self, task: DiskTask) -> None:
        """The task's turn is over."""
        self.slots[task.repository].release()
        self.slots[task.proxy].release()

    async def remember(self, run: VmRun, **pending: Any) -> None:
        """Stores with the Backup Service what must be put right for this VM should this process die; false values: nothing."""
        self._pending.setdefault(run.name, {}).update(pending)
        entries = {vm: {k: v for k, v in e.items() if v} for vm, e in self._pending.items()}
        await self.peers.service.pending({vm: e for vm, e in entries.items() if e})

    def warn(self, run: VmRun, error: VadplabError) -> None:
        """Something that does not fail the VM."""
        run.warnings.append(error)
        self.report.warning(error, vm=run.name)

    async def _open_transport(self, server: str, step: str) -> Transport:
        return await self.peers.transport(self.servers[server], step=step)

    def _opened(self, server: str) -> Transport | None:
        opening = self._transports.get(server)
        if opening is None or not opening.done() or opening.cancelled() or opening.exception() is not None:
            return None
        return opening.result()
