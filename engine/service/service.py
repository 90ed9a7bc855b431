# SPDX-License-Identifier: MIT
"""The methods of the Backup Service (9392). Consoles call the first group, Backup Managers (loopback only) the second.

job.list {}   job.show {name}   job.run {name, mode?, direction?, failover?, full?, session?} (progress, then the result document)
job.stop {name}   infra.show {}   infra.rescan {session?} (progress, then its result document)   points.list {}
session.list {}   points.…: `engine.service.points`   restore.disk, restore.files, recovery.…: `engine.service.served_disks`
restore.vm: `engine.service.restores`

job.create, job.edit, …, infra.add, …, token.issue, …: `engine.service.administration`. REST (`engine.rest`) offers a part of it.

manager.job, manager.progress, manager.pending, manager.learned, manager.result, resources.acquire, resources.reassign (both
with progress {queued: seconds} while they wait), resources.release
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from engine.config import EngineConfig
from engine.errors import InputError, VadplabError
from engine.events import new_id
from engine.model.database import Database
from engine.model.infrastructure import Direction
from engine.modes.names import JobMode
from engine.report import Reporter
from engine.rpc.server import Call, Peer, Server, UnknownMethod
from engine.service.administration import Administration
from engine.service.broker import Broker
from engine.service.jobs import MODULE, Jobs
from engine.service.points import RepositoryPoints
from engine.service.rescan import Rescan
from engine.service.restores import VmRestores
from engine.service.runs import RunState
from engine.service.served_disks import ServedDisks
from engine.service.timer import Timer

if TYPE_CHECKING:
    from engine.rest.server import RestServer

LOOPBACK = "127.0.0.1"
QUEUED = 30.0
"""Seconds between signs of life to a Backup Manager that waits for resources."""


class LoopbackOnly(VadplabError):
    """A method of Backup Managers was called from another machine."""

    code = "service.loopback-only"
    symptom = "not allowed"
    advice = "Only Backup Managers on the backup server may call this method."


class BackupService:
    """Answers on 9392: on the configured address for consoles, on loopback for Backup Managers."""

    def __init__(self, config: EngineConfig, path: Path, database: Database, *, manager_module: str = MODULE) -> None:
        self.config = config
        self.database = database
        self.broker = Broker()
        self.jobs = Jobs(config, path, database, self.broker, manager_module=manager_module)
        self.timer = Timer(self.jobs.database, self._start_by_schedule, self.jobs.busy, self._say)
        self._administration = Administration(self.jobs, self.timer.changed)
        self._points = RepositoryPoints(config, self.jobs)
        self._served = ServedDisks(config, self.jobs, self._spawn)
        self._restores = VmRestores(config, self.jobs, self.broker)
        self._rest: RestServer | None = None
        self._rescanning = asyncio.Lock()
        self._servers = [Server(config.make_identity(), self._handle, on_disconnect=self._peer_left) for _ in range(2)]
        self._work: set[asyncio.Task[Any]] = set()
        self.rest_port: int | None = None

    async def start(self) -> int:
        """Listens, then puts right what earlier runs left; gives the port."""
        port = await self._servers[0].start(self.config.listen, self.config.port)
        if self.config.listen not in (LOOPBACK, "0.0.0.0"):
            await self._servers[1].start(LOOPBACK, port)
        self.jobs.port = port
        if self.config.service is not None and self.config.service.rest_port is not None:
            from engine.rest.app import create_app  # only a service with REST needs the web framework
            from engine.rest.server import RestServer

            self._rest = RestServer(self.config, create_app(self))
            self.rest_port = await self._rest.start(self.config.service.rest_port)
        self._spawn(self._recover_unfinished())
        self._spawn(self.timer.run())
        return port

    async def close(self) -> None:
        """Stops every run (thaw, commit), then the service."""
        if self._rest is not None:
            await self._rest.close()
        await asyncio.gather(self.jobs.close(), self._restores.close())
        for server in self._servers:
            await server.close()
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        self.database.close()

    async def _handle(self, call: Call) -> Any:
        family = call.method.partition(".")[0]
        for room in (self._administration, self._points, self._served, self._restores):
            if room.knows(call.method):
                return await room.handle(call)
        if family in ("manager", "resources"):
            return await self._for_manager(call)
        match call.method:
            case "job.list":
                return {"jobs": await self.jobs.database(lambda db: db.jobs())}
            case "job.show":
                return await self.show_job(call.param("name"))
            case "job.run":
                return await self._run_job(call)
            case "job.stop":
                return {"name": call.param("name"), "stopped": await self.jobs.stop(call.param("name"))}
            case "infra.show":
                return await self.show_infrastructure()
            case "infra.rescan":
                return await self._rescan(call)
            case "session.list":
                return {"sessions": await self.jobs.database(lambda db: db.sessions())}
        raise UnknownMethod(f"{self.config.name}: the Backup Service has no method {call.method}")

    async def _for_manager(self, call: Call) -> Any:
        if not call.peer_address[0].startswith("127.") or call.peer_name != self.config.name:
            raise LoopbackOnly(f"{call.method} is for Backup Managers on {self.config.name}")
        session = call.param("session")
        match call.method:
            case "manager.job":
                return await self.jobs.inputs(session)
            case "manager.progress":
                for item in call.param("items", list):
                    self.jobs.find(session).tell(item)
                return {}
            case "manager.dead":
                return {"dead": await self.jobs.dead(call.param("sessions", list))}
            case "manager.pending":
                await self.jobs.pending(session, call.param("pending", dict))
                return {}
            case "manager.learned":
                await self.jobs.learned(session, call.param("fields", dict))
                return {}
            case "manager.result":
                self.jobs.find(session).document = call.param("document", dict)
                return {}
            case "resources.acquire":
                return await _while_queued(call, self.jobs.acquire(session, call.param("tasks", list)))
            case "resources.reassign":
                tasks, lost = call.param("tasks", list), call.param("lost", list)
                return await _while_queued(call, self.jobs.reassign(session, tasks, lost))
            case "resources.release":
                self.broker.release(session)
                return {}
        raise UnknownMethod(f"{self.config.name}: the Backup Service has no method {call.method}")

    async def show_job(self, name: str) -> dict[str, Any]:
        """A job, its VMs as the database knows them, its last runs."""
        job = await self.jobs.database(lambda db: db.job_book.show(name))
        runs = await self.jobs.database(lambda db: db.sessions(subject=name, kind="job"))
        known = await self.jobs.database(lambda db: db.show())
        return {
            "job": job,
            "vms": [vm for vm in known["vms"] if vm["name"] in job["vms"]],
            "last_runs": [{k: r[k] for k in ("id", "state", "result", "created", "ended")} for r in runs[:10]],
        }

    async def show_infrastructure(self) -> dict[str, Any]:
        """What the database knows, without secrets, with the state and load of each server."""
        found: dict[str, Any] = await self.jobs.database(lambda db: db.show())
        load = self.broker.load()
        for server in found["servers"]:
            seen = "ok" if server["facts"] else "never seen"
            server["state"] = server["problem"] or seen
            server["tasks_running"] = load[server["name"]]
        return found

    async def _run_job(self, call: Call) -> dict[str, Any]:
        name, session = call.param("name"), call.param("session", default=None) or new_id()
        options = run_options(
            call.param("mode", default=None),
            call.param("direction", default=None),
            failover=call.param("failover", bool, default=None),
            full=call.param("full", bool, default=None),
        )
        state = await self.jobs.launch(name, session, options, trigger="console")
        return await self._watch(call, state)

    async def _rescan(self, call: Call) -> dict[str, Any]:
        session = call.param("session", default=None) or new_id()
        await self.jobs.database(lambda db: db.begin_session(session, "rescan", "infrastructure"))
        state = RunState(session, "rescan", "infrastructure")
        self._spawn(self._perform_rescan(state))
        return await self._watch(call, state)

    async def _perform_rescan(self, state: RunState) -> None:
        events = self.config.event_log("service", session=state.session)
        result: dict[str, Any] = {}
        try:
            async with self._rescanning:
                result = await Rescan(self.config, self.database, Reporter(events, state.tell), state.session).run()
        except BaseException:
            error = VadplabError("the rescan was interrupted")
            result = {"run": state.session, "kind": "rescan", "result": "failed", "error": error.to_dict()}
            raise
        finally:
            events.close()
            with contextlib.suppress(VadplabError):
                await self.jobs.database(lambda db: db.end_session(state.session, result["result"], result))
            state.end(result)

    async def points(self) -> list[dict[str, Any]]:
        """The restore points of every repository."""
        return await self._points.points()

    async def _recover_unfinished(self) -> None:
        with contextlib.suppress(VadplabError):  # without its database the service waits for it elsewhere
            await self._restores.sweep_unfinished()
        await self.jobs.recover_unfinished()

    async def _watch(self, call: Call, state: RunState) -> dict[str, Any]:
        async for item in state.watch():
            await call.progress(item)
        assert state.document is not None
        return state.document

    def _peer_left(self, peer: Peer) -> None:
        self._served.left(peer)
        self._restores.left(peer)

    # What REST calls (`engine.rest.app.Operations`)

    async def database_call(self, work: Callable[[Database], Any]) -> Any:
        """Runs work on the configuration database."""
        return await self.jobs.database(work)

    async def start_job(self, name: str, session: str, options: dict[str, Any]) -> None:
        """Step 1: begins a run with what differs in it (`run_options`)."""
        await self.jobs.launch(name, session, run_options(**options), trigger="rest")

    async def stop_job(self, name: str) -> list[str]:
        """Stops every run of a job; gives the sessions."""
        return await self.jobs.stop(name)

    async def session_ended(self, session: str, seconds: float) -> None:
        """Returns when that run has ended, at once when it does not run, after that many seconds anyway."""
        with contextlib.suppress(InputError, TimeoutError):
            await asyncio.wait_for(self.jobs.find(session).ended.wait(), seconds)

    async def _start_by_schedule(self, job: str, session: str, at: str) -> None:
        await self.jobs.launch(job, session, {}, trigger="schedule", at=at)

    def _say(self, text: str) -> None:
        events = self.config.event_log("service")
        events.note(text, step="1")
        events.close()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)


def run_options(
    mode: str | None = None, direction: str | None = None, *, failover: bool | None = None, full: bool | None = None
) -> dict[str, Any]:
    """What may differ in one run of a job. `full`: no incremental, whatever the chain. Raises InputError."""
    return {
        "mode": _one_of(mode, JobMode, "mode"),
        "direction": _one_of(direction, Direction, "direction"),
        "failover": failover,
        "full": full,
    }


async def _while_queued(call: Call, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """The result of `work`; meanwhile the Backup Manager hears every `QUEUED` seconds that its run is still in the queue."""
    running = asyncio.ensure_future(work)
    seconds = 0.0
    try:
        while not (await asyncio.wait([running], timeout=QUEUED))[0]:
            seconds += QUEUED
            await call.progress({"queued": seconds})
        return running.result()
    finally:
        running.cancel()


def _one_of(value: str | None, kind: Any, what: str) -> str | None:
    if value is not None and value not in get_args(kind):
        raise InputError(f"unknown {what} {value}; one of {', '.join(get_args(kind))}")
    return value
