# SPDX-License-Identifier: MIT
"""What the sequence stands on: connections that are kept, slots, movers, and the books with the Backup Service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from engine import snapshots
from engine.errors import VadplabError
from engine.events import EventLog
from engine.guest.channel import Scripts
from engine.manager.errors import ProxyLost, as_error
from engine.manager.guest import GuestRun
from engine.manager.peers import Mover, Peers, Transport, VCenter
from engine.manager.tasks import DiskTask, VmRun
from engine.report import Reporter
from engine.waiting import quietly

REASSIGN_DEADLINE = 120.0


class Run:
    """One run of one job: everything but the steps. `commit_pauses`: seconds between attempts of step 22."""

    def __init__(
        self, session: str, peers: Peers, events: EventLog, *, commit_pauses: Sequence[float] = snapshots.PAUSES
    ) -> None:
        self.session = session
        self.peers = peers
        self.report = Reporter(events, peers.service.progress)
        self.commit_pauses = tuple(commit_pauses)
        self.inputs: dict[str, Any] = {}
        self.job: dict[str, Any] = {}
        self.servers: dict[str, dict[str, Any]] = {}
        self.scripts: Scripts | None = None
        self.vms: list[VmRun] = []
        self.slots: dict[str, asyncio.Semaphore] = {}
        self.vsphere: VCenter | None = None
        self.ports: dict[tuple[str, str], tuple[int, str]] = {}
        """(task id, role) → port and token of a started mover."""
        self.pending: dict[str, dict[str, Any]] = {}
        """What must be put right should this process die now: `{vm: {guest, snapshot, attached}}`."""
        self._transports: dict[str, asyncio.Task[Transport]] = {}
        self.chains: dict[str, asyncio.Lock] = {}

    @property
    def all_tasks(self) -> list[DiskTask]:
        """Tasks of every VM that has not failed."""
        return [t for r in self.vms if not r.failed for t in r.tasks]

    async def for_tasks(
        self, step: str | None, started: list[DiskTask], action: Callable[[DiskTask], Awaitable[None]]
    ) -> None:
        """Runs `action` for each task at the same time, within `step` (None: the action marks its own).

        An error fails the task's VM and ends its movers; when no VM is left the first VM's error is raised.
        """
        by_name = {r.name: r for r in self.vms}
        errors: list[VadplabError] = []

        async def one(task: DiskTask) -> None:
            try:
                await action(task)
            except Exception as exc:
                error = as_error(exc)
                task.error = error
                error.step = error.step or step
                by_name[task.vm].fail(error)
                errors.append(error)

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
            for vm in self.vms:
                if vm.failed:
                    await self.end_movers(vm.tasks)
            self.raise_if_nothing_is_left()

    def raise_if_nothing_is_left(self) -> None:
        """Raises the first VM's error when every VM has failed."""
        if self.vms and all(r.failed for r in self.vms):
            raise next(r.error for r in self.vms if r.error is not None)

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
        await asyncio.gather(*(self._end_movers_of(task) for task in ended))

    async def _end_movers_of(self, task: DiskTask) -> None:
        movers, task.source, task.target = task.movers, None, None
        await asyncio.gather(*(quietly(mover.close()) for mover in movers))
        for server, role in ((task.proxy, "source"), (task.repository, "target")):
            transport = self._opened(server)
            if self.ports.pop((task.id, role), None) is not None and transport is not None:
                await quietly(transport.stop_mover(task.id))

    async def leave(self) -> None:
        """Ends every connection and gives the slots back; never raises."""
        await self.end_movers([t for r in self.vms for t in r.tasks])
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
            "workers": rules["workers"],
        }

    def same_resources(self, task: DiskTask) -> None:
        """A disk that appeared at step 8 shares the proxy, the repository and the slots that the job already holds."""
        assigned = [t for r in self.vms for t in r.tasks if t.proxy]
        beside = next((t for t in assigned if t.vm == task.vm), assigned[0])
        task.proxy, task.repository = beside.proxy, beside.repository

    def guest(self, vm: VmRun) -> GuestRun:
        """The guest of a VM, not connected yet."""
        assert vm.info is not None
        account = self.inputs["guests"].get(vm.name)
        return GuestRun(vm, vm.info, self.job["guest"], account, self.scripts)

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

    async def remember(self, vm: VmRun, **pending: Any) -> None:
        """Stores with the Backup Service what must be put right for this VM should this process die; false values: nothing."""
        entry = {k: v for k, v in (self.pending.get(vm.name, {}) | pending).items() if v}
        self.pending.pop(vm.name, None)
        if entry:
            self.pending[vm.name] = entry
        await self.peers.service.pending(dict(self.pending))

    def proxy_vms(self) -> dict[str, str]:
        """BIOS UUID (lower case) → name of the proxies that are VMs, as their Transport Services say, or said at the last rescan."""
        said = {name: server.get("facts") or {} for name, server in self.servers.items()}
        said |= {name: transport.facts for name, transport in self.opened_transports().items()}
        found = {name: str(facts.get("vm_uuid") or "").lower() for name, facts in said.items()}
        return {uuid: name for name, uuid in found.items() if uuid}

    def vm_of(self, task: DiskTask) -> VmRun:
        """The VM that a task belongs to."""
        return next(r for r in self.vms if r.name == task.vm)

    @property
    def failover(self) -> bool:
        """Whether a task may be read in a lesser mode than the best."""
        return bool(self.job.get("failover", True))

    async def another_proxy(self, task: DiskTask, error: VadplabError, *, step: str) -> str | None:
        """Another proxy for a task whose own is lost, once; None when there is none. It needs slots there, and new movers."""
        if task.lost:
            return None
        wanted = {"id": task.id, "vm": task.vm, "mode": self.job["mode"], "failover": self.failover}
        try:
            async with asyncio.timeout(REASSIGN_DEADLINE):
                found = await self.peers.service.reassign([wanted], [task.proxy])
        except (VadplabError, TimeoutError) as exc:
            why = exc.message if isinstance(exc, VadplabError) else "all others are busy"
            self.report.note(f"{task.id}: no other proxy takes it over: {why}", step=step, task=task.id)
            return None
        task.lost.append({"proxy": task.proxy, "error": error.to_dict()})
        new = str(found["assignments"][0]["proxy"])
        for name, count in found["slots"].items():
            self.slots.setdefault(name, asyncio.Semaphore(count))
        text = f"{task.id}: {task.proxy} was lost ({error.message}); {new} reads it instead"
        self.warn(self.vm_of(task), ProxyLost(text, step=step, host=task.proxy))
        return new

    def warn(self, vm: VmRun, error: VadplabError) -> None:
        """Something that does not fail the VM."""
        vm.warnings.append(error)
        self.report.warning(error, vm=vm.name)

    async def _open_transport(self, server: str, step: str) -> Transport:
        return await self.peers.transport(self.servers[server], step=step)

    def opened_transports(self) -> dict[str, Transport]:
        """Those that are connected, by server."""
        return {name: opened for name in self._transports if (opened := self._opened(name)) is not None}

    def _opened(self, server: str) -> Transport | None:
        opening = self._transports.get(server)
        if opening is None or not opening.done() or opening.cancelled() or opening.exception() is not None:
            return None
        return opening.result()
