# SPDX-License-Identifier: MIT
"""Methods about restore points and restores. Consoles call them; what a console began ends with its connection.

restore.disk {point, disk, vm?, session?} → where the console fetches it (r3); restore.files: the same, of which the console
reads what single files need; restore.end {session, result}
restore.vm {point, name, vm?, vcenter?, host?, datastore?, mode?, direction?, failover?, session?} (progress, then the result document);
restore.stop {session}
recovery.start {point, vm?, disks?, port?, session?} → {disks: [{key, label, size, host, name, port}], …}; it is served until
recovery.stop {session, result}, or until the console's connection ends
restore.intact {point, vm?} → {text}: what of that VM can be restored, every byte read
points.verify {point?, vm?, deep?}   points.prune {count?, days?, vm?, job?}   points.import {folder, repository?}
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, get_args

from engine.config import EngineConfig
from engine.errors import InputError, VadplabError
from engine.events import EventLog, new_id
from engine.model.database import Database
from engine.model.infrastructure import Direction
from engine.processes import in_thread
from engine.report import Reporter
from engine.restore import machine, points
from engine.restore.vm import MARK, RestoreStopped, VmRestore, Wanted, writing
from engine.rpc.client import Client
from engine.rpc.server import Call, Peer
from engine.scheduler import Resource, Task
from engine.servers import connect
from engine.service import restore
from engine.service.broker import Broker
from engine.service.jobs import Jobs
from engine.service.runs import RunState
from engine.vsphere import VSphere
from engine.vsphere.link import login

MODES = ("auto", "hotadd", "nbdssl", "nbd")
QUEUED = 30.0
STOP_DEADLINE = 300.0
SWEEP_DEADLINE = 300.0


class RestoreUnknown(InputError):
    """There is no such restore."""

    code = "restore.not-running"
    advice = "Nothing to do."


class RepositoryUnknown(InputError):
    """There is no such repository, or there are several and none was named."""

    code = "restore.repository"
    advice = "Name one of them; `infra repositories list` shows them."


class Restores:
    """Answers those methods. `spawn` runs work in the background and holds it until the service ends."""

    def __init__(self, config: EngineConfig, jobs: Jobs, broker: Broker, spawn: Callable[[Any], None]) -> None:
        self._config = config
        self._jobs = jobs
        self._broker = broker
        self._spawn = spawn
        self._running: dict[str, tuple[RunState, asyncio.Task[None]]] = {}
        self._methods: dict[str, Callable[[Call], Awaitable[Any]]] = {
            "restore.disk": self._disk,
            "restore.files": lambda call: self._disk(call, reads=True),
            "restore.end": lambda call: self._end(call.peer, call.param("session"), call.param("result")),
            "restore.vm": self._vm,
            "restore.stop": self._stop,
            "restore.intact": self._intact,
            "recovery.start": self._recover,
            "recovery.stop": lambda call: self._end(call.peer, call.param("session"), call.param("result")),
            "points.list": self._list,
            "points.verify": self._verify,
            "points.prune": self._prune,
            "points.import": self._import,
        }

    def knows(self, method: str) -> bool:
        """Whether it answers this method."""
        return method in self._methods

    async def handle(self, call: Call) -> Any:
        """Answers a call."""
        return await self._methods[call.method](call)

    def left(self, peer: Peer) -> None:
        """A console went away: what it began ends."""
        for session in list(peer.data.get("restores", {})):
            self._spawn(self._end(peer, session, "failed"))
        for session in peer.data.get("vm_restores", ()):
            if session in self._running:
                self._running[session][1].cancel()

    async def close(self) -> None:
        """Stops every restore and waits until half-made VMs are gone."""
        works = [work for _, work in self._running.values()]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    # A disk to a file, instant recovery: something lives on the repository while the console's connection does

    async def _disk(self, call: Call, *, reads: bool = False) -> dict[str, Any]:
        point, disk, vm = call.param("point"), call.param("disk", int), call.param("vm", default=None)

        async def start(report: Reporter, servers: list[dict[str, Any]], session: str) -> restore.Restoring:
            return await restore.start(
                self._config, report, servers, session, point=point, vm=vm, disk=disk, reads=reads
            )

        return await self._begin(call, point, start)

    async def _recover(self, call: Call) -> dict[str, Any]:
        point, vm = call.param("point"), call.param("vm", default=None)
        disks, port = call.param("disks", list, default=[]), call.param("port", int, default=None)
        if port is not None and not 1 <= port <= 65535:
            raise InputError(f"port {port}: from 1 to 65535")

        async def start(report: Reporter, servers: list[dict[str, Any]], session: str) -> restore.Restoring:
            return await restore.recover(
                self._config, report, servers, session, point=point, vm=vm, disks=disks, port=port
            )

        return await self._begin(call, point, start)

    async def _begin(
        self,
        call: Call,
        point: str,
        start: Callable[[Reporter, list[dict[str, Any]], str], Coroutine[Any, Any, restore.Restoring]],
    ) -> dict[str, Any]:
        session = call.param("session", default=None) or new_id()
        await self._jobs.database(lambda db: db.begin_session(session, "restore", point))
        servers = await self._jobs.database(lambda db: db.servers())
        events = self._config.event_log("service", session=session)
        told: list[dict[str, Any]] = []
        try:
            going = await start(Reporter(events, told.append), servers, session)
        except BaseException:
            events.close()
            await self._jobs.database(lambda db: db.end_session(session, "failed", {}))
            raise
        finally:
            for item in told:
                with contextlib.suppress(VadplabError, OSError, TimeoutError):
                    await call.progress(item)
        call.peer.data.setdefault("restores", {})[session] = going
        return going.answer

    async def _end(self, peer: Peer, session: str, result: str) -> dict[str, Any]:
        going: restore.Restoring | None = peer.data.get("restores", {}).pop(session, None)
        if going is not None:
            await going.close()
            going.events.close()
            await self._jobs.database(lambda db: db.end_session(session, result, {}))
        return {}

    # Into a new VM: a run of its own

    async def _vm(self, call: Call) -> dict[str, Any]:
        wanted = _wanted(call)
        session = call.param("session", default=None) or new_id()
        await self._jobs.database(lambda db: db.begin_session(session, "restore", wanted.point))
        state = RunState(session, "restore", wanted.point)
        work = asyncio.ensure_future(self._perform(state, wanted))
        self._running[session] = state, work
        call.peer.data.setdefault("vm_restores", set()).add(session)
        async for item in state.watch():
            await call.progress(item)
        assert state.document is not None
        return state.document

    async def _stop(self, call: Call) -> dict[str, Any]:
        session = call.param("session")
        if session not in self._running:
            raise RestoreUnknown(f"no restore with the session {session}")
        state, work = self._running[session]
        work.cancel()
        await asyncio.wait_for(state.ended.wait(), STOP_DEADLINE)
        return {"session": session}

    async def _perform(self, state: RunState, wanted: Wanted) -> None:
        session = state.session
        events = self._config.event_log("service", session=session)
        report = Reporter(events, state.tell)
        result: dict[str, Any] = _failed(session, wanted, RestoreStopped(f"the restore of {wanted.point} was stopped"))
        try:
            servers = await self._jobs.database(lambda db: db.servers())
            vcenters = await self._jobs.database(lambda db: db.vcenters())
            vms = await self._jobs.database(lambda db: db.show()["vms"])
            await self._sweep(vcenters, report)

            async def assign(tasks: list[dict[str, Any]], repository: str) -> dict[str, str]:
                return await self._assign(session, tasks, repository, servers, report)

            restoring = VmRestore(
                self._config, report, session, wanted, servers=servers, vcenters=vcenters, vms=vms, assign=assign,
                slots=lambda server: self._broker.held(session, server),
            )  # fmt: skip
            result = await restoring.run()
        except VadplabError as exc:
            result = _failed(session, wanted, exc)
        finally:
            self._broker.release(session)
            events.close()
            final = result
            with contextlib.suppress(VadplabError):
                await self._jobs.database(lambda db: db.end_session(session, final["result"], final))
            del self._running[session]
            state.end(final)

    async def _assign(
        self,
        session: str,
        tasks: list[dict[str, Any]],
        repository: str,
        servers: list[dict[str, Any]],
        report: Reporter,
    ) -> dict[str, str]:
        """A proxy for each task, with slots on it and on the repository; waits while they are busy. Raises NoResource."""

        def resource(server: dict[str, Any], modes: list[str]) -> Resource:
            return Resource(server["name"], server["max_tasks"], frozenset(modes))

        proxies = [resource(s, writing(s["modes"])) for s in servers if "proxy" in s["roles"]]
        keeper = [resource(s, []) for s in servers if s["name"] == repository]
        wanted = [Task(t["id"], t["vm"], t["mode"], t["failover"]) for t in tasks]
        work = asyncio.ensure_future(self._broker.acquire(session, wanted, proxies, keeper, {}))
        try:
            while not (await asyncio.wait([work], timeout=QUEUED))[0]:
                report.note("queued: all suitable resources are busy", step="r2")
            return {a.task: a.proxy for a in work.result().assignments}
        finally:
            work.cancel()

    # What a dead restore left

    async def sweep_unfinished(self) -> None:
        """At the service's start: half-made VMs of restores that a dead service did not finish are destroyed."""
        unfinished = await self._jobs.database(lambda db: db.unfinished())
        if not any(s["kind"] == "restore" for s in unfinished):
            return
        events = self._config.event_log("service")
        try:
            vcenters = await self._jobs.database(lambda db: db.vcenters())
            await self._sweep(vcenters, Reporter(events, lambda item: None))
        finally:
            events.close()

    async def _sweep(self, vcenters: list[dict[str, Any]], report: Reporter) -> None:
        """Destroys VMs that carry the mark of a restore of ours that does not run; what fails is left to the next restore.

        A restore may have been into any vCenter: it is settled when all of them were searched.
        """
        known = await self._jobs.database(lambda db: db.sessions(kind="restore"))
        dead = {s["id"]: s for s in known if s["id"] not in self._running and _may_have_left_a_vm(s)}
        if not dead:
            return

        def sweep(vcenter: dict[str, Any]) -> list[str]:
            vsphere = login(self._config.dialer(report.events), vcenter, step="r11", keylog=self._config.keylog)
            try:
                return _destroy_marked(vsphere, set(dead))
            finally:
                vsphere.logout()

        searched = True
        for vcenter in vcenters:
            try:
                gone = await in_thread(partial(sweep, vcenter), deadline=SWEEP_DEADLINE, what="half-made VMs")
            except VadplabError as exc:
                report.note(f"half-made VMs of earlier restores could not be looked for: {exc.message}", step="r11")
                searched = False
                continue
            for name in gone:
                report.note(f"{name}, left half-made by an earlier restore, was destroyed", step="r11")
        if not searched:
            return

        def settle(database: Database) -> None:
            for session, record in dead.items():
                database.end_session(session, "failed", {**record["document"], "swept": True})

        await self._jobs.database(settle)

    # Points

    async def _list(self, call: Call) -> dict[str, Any]:
        return {"points": await self.points()}

    async def points(self) -> list[dict[str, Any]]:
        """The restore points of every repository, oldest first."""
        events = self._config.event_log("service")
        try:
            servers = await self._jobs.database(lambda db: db.servers())
            return await restore.points(self._config, events, servers)
        finally:
            events.close()

    async def _intact(self, call: Call) -> dict[str, Any]:
        async with self._point(call) as found:
            work = points.what_is_intact(found.transport, str(found.point["vm"]))
            return {"text": await _alive(call, work)}

    async def _verify(self, call: Call) -> dict[str, Any]:
        point, vm = call.param("point", default=None), call.param("vm", default=None)
        deep = call.param("deep", bool, default=False)
        if point is not None:
            async with self._point(call) as found:
                work = found.transport.call(
                    "points.verify", deadline=points.VERIFY_DEADLINE, point=point, vm=vm, deep=deep
                )
                answers = [(str(found.server["name"]), await _alive(call, work))]
        else:
            answers = await self._everywhere(call, "points.verify", vm=vm, deep=deep)
        health = [{"repository": name, **p} for name, a in answers for one in a["vms"] for p in one["points"]]
        if not health:
            raise points.PointUnknown("there is no restore point to verify" + (f" of {vm}" if vm else ""))
        return {"intact": all(p["intact"] and not p["damage"] for p in health), "points": health}

    async def _prune(self, call: Call) -> dict[str, Any]:
        count, days = call.param("count", int, default=None), call.param("days", int, default=None)
        vm, job = call.param("vm", default=None), call.param("job", default=None)
        if count is None and days is None:
            raise InputError("retention by count, by days, or both", next="Say how many points or days are kept.")
        done: list[dict[str, Any]] = []
        for server, client in await self._repositories(call):
            try:
                listed = await client.call("points.list", deadline=points.STORE_DEADLINE)
                known = sorted({(p["job"], p["vm"]) for p in listed["points"] if not p["error"]})
                for one, name in known:
                    if vm in (None, name) and job in (None, one):
                        entry: dict[str, Any] = {"repository": server, "job": one, "vm": name}
                        done.append(entry | await self._prune_one(call, client, one, name, count, days))
            finally:
                await client.close()
        if vm is not None and not done:
            raise points.PointUnknown(f"there is no restore point of {vm}")
        return {"vms": done}

    async def _prune_one(
        self, call: Call, client: Client, job: str, vm: str, count: int | None, days: int | None
    ) -> dict[str, Any]:
        work = client.call("points.prune", deadline=points.VERIFY_DEADLINE, job=job, vm=vm, count=count, days=days)
        try:
            return {**await _alive(call, work), "error": None}
        except VadplabError as exc:
            return {"merges": [], "removals": [], "error": exc.to_dict()}

    async def _import(self, call: Call) -> dict[str, Any]:
        folder, wanted = call.param("folder"), call.param("repository", default=None)
        opened = await self._repositories(call)
        try:
            chosen = [(name, client) for name, client in opened if wanted in (None, name)]
            if len(chosen) != 1:
                said = f"{wanted} is no repository" if wanted else "which repository?"
                raise RepositoryUnknown(f"{said}: there are {', '.join(name for name, _ in opened) or 'none'}")
            name, client = chosen[0]
            work = client.call("points.import", deadline=points.VERIFY_DEADLINE, folder=folder)
            return {"repository": name, **await _alive(call, work)}
        finally:
            for _, client in opened:
                await client.close()

    @contextlib.asynccontextmanager
    async def _point(self, call: Call) -> Any:
        events = self._events(call)
        try:
            servers = await self._jobs.database(lambda db: db.servers())
            found = await points.find(
                self._config, events, servers, call.param("point"), call.param("vm", default=None), step="r2"
            )
            try:
                yield found
            finally:
                await found.transport.close()
        finally:
            events.close()

    async def _everywhere(self, call: Call, method: str, **params: Any) -> list[tuple[str, Any]]:
        answers = []
        for name, client in await self._repositories(call):
            try:
                answers.append(
                    (name, await _alive(call, client.call(method, deadline=points.VERIFY_DEADLINE, **params)))
                )
            finally:
                await client.close()
        return answers

    async def _repositories(self, call: Call) -> list[tuple[str, Client]]:
        events = self._events(call)
        servers = await self._jobs.database(lambda db: db.servers())
        keepers = [s for s in servers if "repository" in s["roles"]]
        return [(str(s["name"]), await connect(self._config, events, s, step="r2")) for s in keepers]

    def _events(self, call: Call) -> EventLog:
        return self._config.event_log("service", session=call.param("session", default=None))


def _may_have_left_a_vm(session: dict[str, Any]) -> bool:
    """A restore that did not end by itself (the service died), or said that its half-made VM stayed."""
    document = session["document"] or {}
    if document.get("swept"):
        return False
    return session["state"] != "ended" or document.get("kind") == "job" or bool(document.get("left"))


def _wanted(call: Call) -> Wanted:
    mode, direction = call.param("mode", default="auto"), call.param("direction", default="proxy-to-repository")
    if mode not in MODES:
        said = "Direct SAN does not write" if mode == "san" else f"unknown mode {mode}"
        raise InputError(f"{said}; one of {', '.join(MODES)}")
    if direction not in get_args(Direction):
        raise InputError(f"unknown direction {direction}; one of {', '.join(get_args(Direction))}")
    wanted = Wanted(
        point=call.param("point"),
        name=call.param("name"),
        vm=call.param("vm", default=None),
        vcenter=call.param("vcenter", default=None),
        host=call.param("host", default=None),
        datastore=call.param("datastore", default=None),
        mode=mode,
        direction=direction,
        failover=call.param("failover", bool, default=True),
    )
    machine.check_name(wanted.name)
    return wanted


def _failed(session: str, wanted: Wanted, error: VadplabError) -> dict[str, Any]:
    return {
        "schema": "vadplab.restore-result/1",
        "run": session,
        "kind": "restore",
        "what": "vm",
        "result": "failed",
        "error": error.to_dict(),
        "point": wanted.point,
        "vm": wanted.vm,
        "name": wanted.name,
        "disks": [],
    }


def _destroy_marked(vsphere: VSphere, sessions: set[str]) -> list[str]:
    gone = []
    end = time.monotonic() + SWEEP_DEADLINE / 2
    for moref, name, text in machine.marked(vsphere, MARK, step="r11"):
        if text.partition(MARK)[2].strip() in sessions:
            while True:
                try:
                    machine.destroy(vsphere, moref, step="r11")
                    break
                except VadplabError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(1.0)  # a Data Mover of that restore may still be giving a disk back
            gone.append(name)
    return gone


async def _alive(call: Call, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`; meanwhile the console hears every few seconds that it goes on."""
    running = asyncio.ensure_future(work)
    seconds = 0.0
    try:
        while not (await asyncio.wait([running], timeout=5.0))[0]:
            seconds += 5.0
            await call.progress({"kind": "alive", "seconds": seconds})
        return running.result()
    finally:
        running.cancel()
