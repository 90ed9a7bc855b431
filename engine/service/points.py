# SPDX-License-Identifier: MIT
"""Methods about the restore points of the repositories; each asks their Transport Services.

points.list {}   points.verify {point?, vm?, deep?}   points.prune {count?, days?, vm?, job?}   points.import {folder, repository?}
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from engine.config import EngineConfig
from engine.errors import InputError, VadplabError
from engine.events import EventLog
from engine.restore import points
from engine.rpc.client import Client
from engine.rpc.server import Call
from engine.servers import connect
from engine.service.jobs import Jobs


class RepositoryUnknown(InputError):
    """There is no such repository, or there are several and none was named."""

    code = "restore.repository"
    advice = "Name one of them; `infra repositories list` shows them."


class RepositoryPoints:
    """Answers those methods."""

    def __init__(self, config: EngineConfig, jobs: Jobs) -> None:
        self._config = config
        self._jobs = jobs
        self._methods: dict[str, Callable[[Call], Awaitable[Any]]] = {
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

    async def _list(self, call: Call) -> dict[str, Any]:
        return {"points": await self.points()}

    async def points(self) -> list[dict[str, Any]]:
        """The restore points of every repository, oldest first."""
        events = self._config.event_log("service")
        try:
            servers = await self._jobs.database(lambda db: db.servers())
            return await points.listed(self._config, events, servers)
        finally:
            events.close()

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
