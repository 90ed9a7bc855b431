# SPDX-License-Identifier: MIT
"""The Transport Service's methods (`docs/architecture.md`, Engine messages).

`hello {added?}` → {name, version, roles, modes, vm_uuid, mover_ports, movers, free_bytes?}; `modes`: transport modes that this machine
is set up for as a proxy; `vm_uuid`: its BIOS UUID when it is a VM, else null; `added`: the Backup Service has not known this
machine as a repository so far, so that its folder may have to be made. `mover.start {session, task, role}` → {port, token};
`mover.stop {session, task?}`; on a repository also `recovery.…`
(`engine.transport.recoveries`), `point.…` and `points.…` (`engine.transport.repository`).

What a session began over a connection and did not commit is removed when that connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from engine.config import EngineConfig
from engine.errors import InputError
from engine.modes.names import configured
from engine.mover.roles import ROLES
from engine.processes import in_thread
from engine.rpc.server import BadParams, Call, Peer, Server, UnknownMethod
from engine.store import marker
from engine.store.errors import on_host
from engine.store.points import Points
from engine.transport.movers import Movers
from engine.transport.recoveries import Recoveries
from engine.transport.repository import STORE_DEADLINE, Repository

VERSION = "1"


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
            self.points = Points(config.repository)
        self.repository = None if self.points is None else Repository(self.points)
        self.recoveries: Recoveries | None = None
        if config.repository is not None:
            self.recoveries = Recoveries(movers.config, config.repository, movers.log)
        self._server = Server(config.make_identity(), self._handle, on_disconnect=self._peer_left)
        self._cleaning: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listens; gives the port."""
        return await self._server.start(self.config.listen, self.config.port)

    async def close(self) -> None:
        """Stops listening, ends all movers, removes points in the making."""
        await self._server.close()
        await self.movers.close()
        if self.recoveries is not None:
            await self.recoveries.close()
        await asyncio.gather(*self._cleaning, return_exceptions=True)
        if self.points is not None:
            await in_thread(self.points.close, deadline=STORE_DEADLINE, what="point.abort")

    async def _handle(self, call: Call) -> Any:
        match call.method:
            case "hello":
                return await self._hello(added=call.param("added", bool, default=False))
            case "mover.start":
                role = call.param("role")
                if role not in ROLES:
                    raise BadParams(f"mover.start: unknown role {role!r}")
                if role == "target":
                    self._store()
                session = call.param("session")
                call.peer.data.setdefault("sessions", set()).add(session)
                return await self.movers.start(session, call.param("task"), role)
            case "mover.stop":
                return {"stopped": await self.movers.stop(call.param("session"), call.param("task", default=None))}
            case "recovery.start":
                session = call.param("session")
                call.peer.data.setdefault("recoveries", set()).add(session)
                port = await self._recoveries().start(
                    session, call.param("folder"), call.param("disk", int), call.param("port", int, default=None)
                )
                return {"port": port}
            case "recovery.stop":
                return {"stopped": await self._recoveries().stop(call.param("session"))}
            case method if method.startswith(("point.", "points.")):
                with on_host(self.config.name):
                    return await self._store().handle(call)
        raise UnknownMethod(f"{self.config.name}: the Transport Service has no method {call.method}")

    async def _hello(self, *, added: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "name": self.config.name,
            "version": VERSION,
            "roles": roles(self.config),
            "modes": list(configured(self.config)),
            "vm_uuid": self.config.proxy.vm_uuid if self.config.proxy is not None else None,
            "mover_ports": list(self.config.mover_ports),
            "movers": self.movers.count,
        }
        if self.points is not None:
            with on_host(self.config.name):
                if added:
                    marker.make(self.points.repository)
                answer["free_bytes"] = self.points.free_bytes()
        return answer

    def _store(self) -> Repository:
        if self.repository is None:
            raise NotARepository(f"{self.config.name} is not a repository")
        return self.repository

    def _recoveries(self) -> Recoveries:
        if self.recoveries is None:
            raise NotARepository(f"{self.config.name} is not a repository")
        return self.recoveries

    def _peer_left(self, peer: Peer) -> None:
        """The Backup Manager (or Backup Service) went away: its movers end, its unfinished points are removed."""
        task = asyncio.ensure_future(self._clean(peer))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    async def _clean(self, peer: Peer) -> None:
        for session in peer.data.get("sessions", ()):
            await self.movers.stop(session)
        for session in peer.data.get("recoveries", ()):
            await self._recoveries().stop(session)
        if self.repository is not None:
            with contextlib.suppress(Exception):
                await asyncio.to_thread(self.repository.left, peer)


def roles(config: EngineConfig) -> list[str]:
    """What a machine is: as its configuration says, else a repository when it has a folder for one, a proxy when it has not or is
    set up for HotAdd or Direct SAN."""
    if config.roles is not None:
        return list(config.roles)
    only_repository = config.repository is not None and config.proxy is None and config.san is None
    return ["proxy"] * (not only_repository) + ["repository"] * (config.repository is not None)
