# SPDX-License-Identifier: MIT
"""Methods of restores into a new VM: each is a run of its own, and ends with its console's connection.

restore.vm {point, name, vm?, vcenter?, host?, datastore?, mode?, direction?, failover?, session?} (progress, then the result document);
restore.stop {session}
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, get_args

from engine.config import EngineConfig
from engine.errors import InputError, VadplabError
from engine.events import new_id
from engine.model.infrastructure import Direction
from engine.modes.names import AUTO, SAN, WRITING
from engine.report import Reporter
from engine.restore import machine
from engine.restore.vm import RestoreStopped, VmRestore, Wanted, writing
from engine.rpc.server import Call, Peer
from engine.scheduler import Resource, Task
from engine.service.broker import Broker
from engine.service.jobs import Jobs
from engine.service.runs import RunState
from engine.service.sweep import Sweep

MODES = (AUTO, *WRITING)
QUEUED = 30.0
STOP_DEADLINE = 300.0


class RestoreUnknown(InputError):
    """There is no such restore."""

    code = "restore.not-running"
    advice = "Nothing to do."


class VmRestores:
    """Answers those methods."""

    def __init__(self, config: EngineConfig, jobs: Jobs, broker: Broker) -> None:
        self._config = config
        self._jobs = jobs
        self._broker = broker
        self._running: dict[str, tuple[RunState, asyncio.Task[None]]] = {}
        self._sweep = Sweep(config, jobs, self._running)
        self._methods: dict[str, Callable[[Call], Awaitable[Any]]] = {
            "restore.vm": self._vm,
            "restore.stop": self._stop,
        }

    def knows(self, method: str) -> bool:
        """Whether it answers this method."""
        return method in self._methods

    async def handle(self, call: Call) -> Any:
        """Answers a call."""
        return await self._methods[call.method](call)

    def left(self, peer: Peer) -> None:
        """A console went away: its restores end."""
        for session in peer.data.get("vm_restores", ()):
            if session in self._running:
                self._running[session][1].cancel()

    async def sweep_unfinished(self) -> None:
        """At the service's start: what a dead service left half-made goes."""
        await self._sweep.at_start()

    async def close(self) -> None:
        """Stops every restore and waits until half-made VMs are gone."""
        works = [work for _, work in self._running.values()]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

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
            await self._sweep.run(vcenters, report)

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


def _wanted(call: Call) -> Wanted:
    mode, direction = call.param("mode", default=AUTO), call.param("direction", default="proxy-to-repository")
    if mode not in MODES:
        said = "Direct SAN does not write" if mode == SAN else f"unknown mode {mode}"
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
