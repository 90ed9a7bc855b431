# SPDX-License-Identifier: MIT
"""The sequence of a restore into a new VM, in the order and under the numbers of `docs/sequence.md`.

    run             r1              the console asked for it
                    r2  r4          Data Movers start: one on the repository and one on the proxy for each disk
                    r5              the VM is made in vCenter, marked as half-made, powered off, its disks empty
      each disk     r6  r7          its Data Movers connect (direction as asked), the transport mode is chosen
                    r8 to r10       the proxy logs in, opens the new disk for writing, writes what the repository sends
                    r11             the mark is taken away; after any failure, and a stop, the half-made VM is destroyed

Nothing of the restore point changes. Steps r7 to r10 are performed by the proxy's Data Mover, which writes their events.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from engine.config import EngineConfig
from engine.errors import InputError, MissingError, VadplabError
from engine.modes.names import AUTO, WRITING, usable
from engine.mover.roles import Role
from engine.mover_steps import MoverSteps
from engine.processes import READY_DEADLINE, in_thread
from engine.report import Reporter
from engine.restore import machine, points
from engine.restore.machine import Made
from engine.restore.points import Found
from engine.rpc.client import Client
from engine.servers import connect
from engine.vsphere import VSphere, attached
from engine.vsphere.link import account, login
from engine.waiting import every, quietly, to_the_end

SCHEMA = "vadplab.restore-result/1"
OPEN_DEADLINE = 900.0
IDLE = 90.0
"""Seconds without a sign of life of a Data Mover."""
SILENCE = 300.0
"""Seconds that a Data Mover waits for the other one: a disk that is being attached is not being read from."""
VSPHERE_DEADLINE = 300.0
DESTROY_DEADLINE = 60.0
MARK = "vadplab: half-made by restore "
STEPS = {"choose": "r7", "login": "r8", "connect": "r9", "hotadd": "r10b", "network": "r10c"}


class RestoreStopped(VadplabError):
    """The restore was stopped before it was done."""

    code = "restore.stopped"
    symptom = "stopped"
    advice = "Run it again; the half-made VM was destroyed."


class NoProxy(MissingError):
    """No proxy can write in the transport mode that was asked for."""

    code = "restore.no-proxy"
    symptom = "no suitable proxy"
    advice = "Choose another --mode, or add a proxy; Direct SAN reads only."


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be restored: the point, of which VM (None: the only one), into which new VM, where and how.

    vcenter: None: the one that the VM was backed up from.
    host, datastore: None: any that mounts the datastore; the original disk's. mode: nbd, nbdssl, hotadd or auto.
    """

    point: str
    name: str
    vm: str | None = None
    vcenter: str | None = None
    host: str | None = None
    datastore: str | None = None
    mode: str = AUTO
    direction: str = "proxy-to-repository"
    failover: bool = True


@dataclass(slots=True)
class DiskRun:
    """One disk on its way: the manifest's entry, its proxy, the control connections of its two Data Movers, its outcome."""

    entry: dict[str, Any]
    proxy: dict[str, Any]
    modes: tuple[str, ...]
    task: str
    reader: Client | None = None
    writer: Client | None = None
    outcome: dict[str, Any] = field(default_factory=dict)
    error: VadplabError | None = None

    def summary(self) -> dict[str, Any]:
        """For the result document."""
        shown = {key: self.entry[key] for key in ("key", "label", "capacity")}
        error = self.error.to_dict() if self.error is not None else None
        return {**shown, "task": self.task, "proxy": self.proxy["name"], "error": error, **self.outcome}


Assign = Callable[[list[dict[str, Any]], str], Awaitable[dict[str, str]]]
"""(tasks `{id, vm, mode, failover}`, repository) → proxy of each task; it waits while all are busy."""


class VmRestore:
    """One restore. `run` gives its result document; cancelling it stops the restore and still cleans up."""

    def __init__(
        self,
        config: EngineConfig,
        report: Reporter,
        session: str,
        wanted: Wanted,
        *,
        servers: list[dict[str, Any]],
        vcenters: list[dict[str, Any]],
        vms: list[dict[str, Any]],
        assign: Assign,
        slots: Callable[[str], int] = lambda server: 1,
    ) -> None:
        self._config = config
        self._report = report
        self._session = session
        self._wanted = wanted
        self._servers = servers
        self._vcenters = vcenters
        self._vms = vms
        self._vcenter: dict[str, Any] = {}
        self._assign = assign
        self._slots = slots
        self._found: Found | None = None
        self._transports: dict[str, Client] = {}
        self._disks: list[DiskRun] = []
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._vsphere: VSphere | None = None
        self._made: Made | None = None
        self._uuid = ""
        self._where: dict[str, Any] = {"host": wanted.host, "datastore": wanted.datastore}
        self._left: str | None = None

    @property
    def mark(self) -> str:
        """What stands in the VM's annotation while it is half-made."""
        return MARK + self._session

    async def run(self) -> dict[str, Any]:
        """The whole restore; never raises an error of the catalogue."""
        error: VadplabError | None = None
        try:
            await self._perform()
        except asyncio.CancelledError:
            error = RestoreStopped(f"the restore of {self._wanted.point} was stopped")
        except VadplabError as exc:
            error = exc
        with contextlib.suppress(asyncio.CancelledError):
            await to_the_end(self._leave(error))
        return self._document(error)

    async def _perform(self) -> None:
        with self._report.step("r1", point=self._wanted.point, name=self._wanted.name):
            pass  # the call is the start
        await self.step_r2_movers_on_repository()
        await self.step_r4_movers_on_proxies()
        await self.step_r5_make_vm()
        await every(self._restore(disk) for disk in self._disks)
        await self.step_r11_done()

    async def step_r2_movers_on_repository(self) -> None:
        """Finds the point, and starts a Data Mover for each of its disks."""
        with self._report.step("r2") as result:
            wanted = self._wanted
            self._found = await points.find(
                self._config, self._report.events, self._servers, wanted.point, wanted.vm, step="r2"
            )
            found, name = self._found.point, str(self._found.server["name"])
            self._transports[name] = self._found.transport
            if found.get("error"):
                raise points.PointUnknown(f"{wanted.point} is damaged: {found['error']}")
            self._vcenter = vcenter_of(str(found["uuid"]), wanted.vcenter, self._vcenters, self._vms)
            result["repository"] = name
            await self._choose_proxies(found, name)
            for disk in self._disks:
                disk.reader = await self._start_mover(self._found.server, f"{disk.task}:read", "reader", "r2")

    async def _choose_proxies(self, found: dict[str, Any], repository: str) -> None:
        wanted = self._wanted
        tasks = {int(d["key"]): f"{wanted.name}:{d['key']}" for d in found["disks"]}
        asked = [
            {"id": task, "vm": wanted.name, "mode": wanted.mode, "failover": wanted.failover} for task in tasks.values()
        ]
        proxies = await self._assign(asked, repository)
        by_name = {str(server["name"]): server for server in self._servers}
        for entry in sorted(found["disks"], key=lambda d: int(d["key"])):
            task = tasks[int(entry["key"])]
            proxy = by_name[proxies[task]]
            modes = usable(wanted.mode, writing(proxy["modes"]), failover=wanted.failover)
            if not modes:
                raise NoProxy(f"{proxy['name']} cannot write in mode {wanted.mode}", step="r2", host=proxy["name"])
            self._disks.append(DiskRun(entry, proxy, modes, task))
        for server in {repository, *(d.proxy["name"] for d in self._disks)}:
            self._turns[server] = asyncio.Semaphore(max(1, self._slots(server)))

    async def step_r4_movers_on_proxies(self) -> None:
        """Starts the Data Movers that write."""
        with self._report.step("r4", proxies=sorted({d.proxy["name"] for d in self._disks})):
            for disk in self._disks:
                name = str(disk.proxy["name"])
                if name not in self._transports:
                    self._transports[name] = await connect(self._config, self._report.events, disk.proxy, step="r4")
                disk.writer = await self._start_mover(disk.proxy, f"{disk.task}:write", "writer", "r4")

    async def step_r5_make_vm(self) -> None:
        """The VM as the manifest describes it, with a new UUID and empty disks."""
        assert self._found is not None
        plan = machine.planned(self._wanted.name, self._found.point)
        datastore = self._wanted.datastore or _datastore(plan.disks[0]["path"])
        with self._report.step("r5", name=plan.name) as result:

            def make() -> None:
                dialer = self._config.dialer(self._report.events)
                vsphere = self._vsphere = login(dialer, self._vcenter, step="r5", keylog=self._config.keylog)
                resolver = self._config.resolver
                place = machine.place(vsphere, self._wanted.host, datastore, plan.name, resolver=resolver, step="r5")
                self._where = {"host": place.host_name, "datastore": datastore}
                self._uuid = plan.uuid
                self._made = machine.create(vsphere, plan, place, self.mark, step="r5")

            # A stop waits until vCenter has answered: else nobody would know of the VM that it is making.
            await to_the_end(in_thread(make, deadline=VSPHERE_DEADLINE, what="making the VM"))
            assert self._made is not None
            result["vm"] = self._made.moref

    async def _restore(self, disk: DiskRun) -> None:
        assert self._found is not None
        proxy, repository = self._turns[str(disk.proxy["name"])], self._turns[str(self._found.server["name"])]
        try:
            async with proxy, repository:
                await self.step_r6_movers_connect(disk)
                await self.steps_r7_to_r10_write(disk)
        except VadplabError as exc:
            disk.error = exc
            raise

    async def step_r6_movers_connect(self, disk: DiskRun) -> None:
        """The data connection between the two movers, opened by the side that was asked for."""
        assert self._found is not None and disk.reader is not None and disk.writer is not None
        server, folder = self._found.server, self._found.point["folder"]
        opening: dict[str, Any] = {"folder": folder, "disk": disk.entry["key"], "as_step": "r6"}
        with self._report.step("r6", task=disk.task, direction=self._wanted.direction):
            if self._wanted.direction == "proxy-to-repository":
                at = await disk.reader.call("reader.open", step="r6", deadline=points.STORE_DEADLINE, **opening)
                await _link(disk.writer, server, at)
            else:
                at = await disk.writer.call("data.listen", step="r6", as_step="r6")
                await _link(disk.reader, disk.proxy, at)
                await disk.reader.call("reader.open", step="r6", deadline=points.STORE_DEADLINE, **opening)

    async def steps_r7_to_r10_write(self, disk: DiskRun) -> None:
        """The proxy's mover opens the new disk in the first mode that works, and writes it; it says what it does."""
        assert self._made is not None and disk.writer is not None and disk.reader is not None
        target = self._made.disks[int(disk.entry["key"])]
        told = MoverSteps(self._report, disk.task, str(disk.proxy["name"]))
        with self._report.step("r7", task=disk.task, text=f"{', then '.join(disk.modes)} on {disk.proxy['name']}"):
            pass  # the modes were chosen with the proxy; a failover from one to the next is the mover's note

        def heard(item: dict[str, Any]) -> None:
            told.heard(item)
            if "passed" in item:
                self._report.moved(disk.task, int(item["passed"]), int(item["total"]))

        try:
            opened = await disk.writer.call(
                "writer.open",
                step="r8",
                deadline=OPEN_DEADLINE,
                on_progress=heard,
                modes=list(disk.modes),
                failover=self._wanted.failover,
                vcenter=account(self._vcenter),
                vm={"name": self._wanted.name, "moref": self._made.moref, "uuid": self._uuid},
                disk={"key": target.key, "path": target.path, "capacity": target.capacity},
                steps=STEPS,
            )
            disk.outcome |= {key: opened[key] for key in ("mode", "host", "failed_over")}
            written = await disk.writer.call("writer.write", deadline=None, idle=IDLE, on_progress=heard)
            disk.outcome |= {key: written[key] for key in ("written", "clusters", "received")}
            sent = await disk.reader.call("reader.wait", step="r6", deadline=IDLE)
            disk.outcome["sent"] = sent["sent"]
        except BaseException as exc:
            told.broken(exc, "r8")
            raise

    async def step_r11_done(self) -> None:
        """The VM is whole: its mark goes. The movers end before, so that no disk is attached any more."""
        assert self._vsphere is not None and self._made is not None and self._found is not None
        await self._end_movers()
        vsphere, moref = self._vsphere, self._made.moref
        text = f"Restored from {self._found.point['point']} of {self._found.point['vm']}"
        with self._report.step("r11"):
            work = in_thread(
                lambda: machine.unmark(vsphere, moref, text, step="r11"), deadline=VSPHERE_DEADLINE, what="the mark"
            )
            await to_the_end(work)

    async def _leave(self, error: VadplabError | None) -> None:
        """Whatever happened: a half-made VM is destroyed, what is intact is said, every connection ends."""
        await self._end_movers()
        if error is not None and self._made is not None:
            await self._destroy()
        if error is not None and points.is_damage(error) and self._found is not None:
            with contextlib.suppress(VadplabError, OSError):
                error.next = await points.what_is_intact(self._found.transport, str(self._found.point["vm"]))
        for transport in self._transports.values():
            await quietly(transport.close())
        if self._vsphere is not None:
            await quietly(in_thread(self._vsphere.logout, deadline=30.0, what="logout"))

    async def _destroy(self) -> None:
        assert self._vsphere is not None and self._made is not None
        vsphere, made = self._vsphere, self._made
        uuids = [
            str(server["facts"]["vm_uuid"]) for server in self._servers if (server.get("facts") or {}).get("vm_uuid")
        ]
        paths = [disk.path for disk in made.disks.values()]

        def destroy() -> None:
            end = time.monotonic() + DESTROY_DEADLINE
            while True:
                try:
                    for uuid in uuids:
                        attached.detach_left(vsphere, uuid, paths, step="r11")
                    return machine.destroy(vsphere, made.moref, step="r11")
                except VadplabError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(1.0)  # a Data Mover may be giving its disk back just now

        try:
            with self._report.step("r11", text=f"the half-made {self._wanted.name} is destroyed"):
                await in_thread(destroy, deadline=DESTROY_DEADLINE + VSPHERE_DEADLINE, what="destroying the VM")
        except VadplabError as exc:
            self._left = f"the half-made VM {self._wanted.name} is still there: {exc.message}"
            self._report.note(self._left, step="r11")

    async def _start_mover(self, server: dict[str, Any], task: str, role: Role, step: str) -> Client:
        started = await self._transports[str(server["name"])].call(
            "mover.start", step=step, deadline=READY_DEADLINE * 2, session=self._session, task=task, role=role
        )
        control = await connect(self._config, self._report.events, server, step=step, port=int(started["port"]))
        try:
            await control.call("hello", step=step, token=started["token"])
            await control.call("rules", step=step, silence=SILENCE)
        except BaseException:
            await control.close()
            raise
        return control

    async def _end_movers(self) -> None:
        for disk in self._disks:
            writer, reader, disk.writer, disk.reader = disk.writer, disk.reader, None, None
            for control in (writer, reader):
                if control is not None:
                    await quietly(control.call("abort", deadline=30.0), 30.0)  # a HotAdd disk is detached in it
                    await quietly(control.close())

    def _document(self, error: VadplabError | None) -> dict[str, Any]:
        point = self._found.point if self._found is not None else {}
        repository = self._found.server["name"] if self._found is not None else None
        return {
            "schema": SCHEMA,
            "run": self._session,
            "kind": "restore",
            "what": "vm",
            "result": "failed" if error is not None else "success",
            "error": error.to_dict() if error is not None else None,
            "point": self._wanted.point,
            "vm": point.get("vm", self._wanted.vm),
            "consistency": point.get("consistency"),
            "repository": repository,
            "name": self._wanted.name,
            "uuid": self._uuid or None,
            "moref": self._made.moref if self._made is not None else None,
            **self._where,
            "direction": self._wanted.direction,
            "disks": [disk.summary() for disk in self._disks],
            "left": self._left,
            "started": datetime.fromtimestamp(self._report.started / 1e9, UTC).isoformat(),
            "ended": datetime.now(UTC).isoformat(),
        }


def writing(modes: list[str]) -> list[str]:
    """Those of a proxy's transport modes that can write; a proxy that is a VM can write over the network as well."""
    return [mode for mode in modes if mode in WRITING]


async def _link(caller: Client, listener: dict[str, Any], at: dict[str, Any]) -> None:
    await caller.call(
        "data.connect",
        step="r6",
        deadline=60.0,
        host=listener["address"],
        port=at["port"],
        token=at["token"],
        name=listener["name"],
        as_step="r6",
    )


def vcenter_of(
    uuid: str, wanted: str | None, vcenters: list[dict[str, Any]], vms: list[dict[str, Any]]
) -> dict[str, Any]:
    """The vCenter to restore into: the one that is wanted, else that of the VM with this BIOS UUID, else the only one.

    Raises:
        InputError: it is not known, or the VM is gone and there are several.
    """
    name = wanted or next((vm["vcenter"] for vm in vms if vm["uuid"] == uuid), None)
    chosen = [v for v in vcenters if name in (None, v["name"])]
    if len(chosen) == 1:
        return chosen[0]
    known = ", ".join(str(v["name"]) for v in vcenters) or "none; run `infra rescan`"
    raise InputError(f"{name} is no vCenter" if name else "which vCenter?", next=f"Name one with --vcenter: {known}.")


def _datastore(path: str) -> str:
    return path.partition("]")[0].removeprefix("[")
