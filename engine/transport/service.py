# SPDX-License-Identifier: MIT
"""The Transport Service's methods (`docs/architecture.md`, Engine messages).

`hello {}` → {name, version, roles, mover_ports, free_bytes}; `mover.start {session, task, role}` → {port, token};
`mover.stop {session, task?}`; on a repository also `point.begin {job, vm, point, session?}` → {folder};
`point.commit {job, vm, point, manifest}`; `point.abort {job, vm, point}`; `points.list {}` → {points}; `points.find {point}`.

What a session began over a connection and did not commit is removed when that connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.errors import InputError
from engine.processes import in_thread
from engine.rpc.server import BadParams, Call, Peer, Server, UnknownMethod
from engine.store.points import Points
from engine.transport.movers import ROLES, Movers

VERSION = "1"
STORE_DEADLINE = 600.0


class NotARepository(InputError):
    """A method of repositories was called on a machine that keeps no restore points."""

    code = "transport.not-a-repository"
    advice = "Give the machine the role of a repository, with a folder, in its configuration."


class TransportService:
    """Answers on one machine, with the movers and (when configured) the restore points of that machine."""

    def __init__(self, config: EngineConfig, movers: Movers) -> None:
        self.config = config
        self.movers = movers
        self.points: Points | None = None
        if config.repository is not None:
            config.repository.mkdir(parents=True, exist_ok=True)
            self.points = Points(config.repository)
        self._server = Server(config.make_identity(), self._handle, on_disconnect=self._peer_left)
        self._cleaning: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listens; gives the port."""
        return await self._server.start(self.config.listen, self.config.port)

    async def close(self) -> None:
        """Stops listening, ends all movers, removes points in the making."""
        await self._server.close()
        await self.movers.close()
        await asyncio.gather(*self._cleaning, return_exceptions=True)
        if self.points is not None:
            await in_thread(self.points.close, deadline=STORE_DEADLINE, what="point.abort")

    async def _handle(self, call: Call) -> Any:
        match call.method:
            case "hello":
                return await self._hello()
            case "mover.start":
                role = call.param("role")
                if role not in ROLES:
                    raise BadParams(f"mover.start: unknown role {role!r}")
                if role != "source":
                    self._store()
                session = call.param("session")
                call.peer.data.setdefault("sessions", set()).add(session)
                return await self.movers.start(session, call.param("task"), role)
            case "mover.stop":
                return {"stopped": await self.movers.stop(call.param("session"), call.param("task", default=None))}
            case "points.list":
                store = self._store()
                points = await in_thread(store.list, deadline=STORE_DEADLINE, what=call.method)
                return {"points": [p.summary() for p in points]}
            case "points.find":
                store, name = self._store(), call.param("point")
                vm = call.param("vm", default=None)
                point = await in_thread(lambda: store.find(name, vm=vm), deadline=STORE_DEADLINE, what=call.method)
                return point.summary()
            case "point.begin" | "point.commit" | "point.abort":
                return await self._point(call)
        raise UnknownMethod(f"{self.config.name}: the Transport Service has no method {call.method}")

    async def _hello(self) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "name": self.config.name,
            "version": VERSION,
            "roles": ["proxy"] if self.points is None else ["proxy", "repository"],
            "mover_ports": list(self.config.mover_ports),
            "movers": self.movers.count,
        }
        if self.points is not None:
            answer["free_bytes"] = self.points.free_bytes()
        return answer

    async def _point(self, call: Call) -> dict[str, Any]:
        store = self._store()
        job, vm, point = call.param("job"), call.param("vm"), call.param("point")
        begun: set[tuple[str, str, str]] = call.peer.data.setdefault("points", set())
        if call.method == "point.begin":
            session = call.param("session", default=None)
            begun.add((job, vm, point))
            folder: Path = await in_thread(
                lambda: store.begin(job, vm, point, session=session), deadline=STORE_DEADLINE, what=call.method
            )
            return {"folder": str(folder)}
        if call.method == "point.commit":
            manifest = call.param("manifest", dict)
            folder = await in_thread(
                lambda: store.commit(job, vm, point, manifest), deadline=STORE_DEADLINE, what=call.method
            )
            begun.discard((job, vm, point))
            return {"folder": str(folder)}
        await in_thread(lambda: store.abort(job, vm, point), deadline=STORE_DEADLINE, what=call.method)
        begun.discard((job, vm, point))
        return {}

    def _store(self) -> Points:
        if self.points is None:
            raise NotARepository(f"{self.config.name} is not a repository")
        return self.points

    def _peer_left(self, peer: Peer) -> None:
        """The Backup Manager (or Backup Service) went away: its movers end, its unfinished points are removed."""
        task = asyncio.ensure_future(self._clean(peer))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    async def _clean(self, peer: Peer) -> None:
        for session in peer.data.get("sessions", ()):
            await self.movers.stop(session)
        for job, vm, point in list(peer.data.get("points", ())):
            if self.points is not None:
                with contextlib.suppress(Exception):
                    await asyncio.to_thread(self.points.abort, job, vm, point)
