# SPDX-License-Identifier: MIT
"""Methods that serve disks of a restore point from its repository, while the console's connection lives.

restore.disk {point, disk, vm?, session?} → where the console fetches it (r3); restore.files: the same, of which the console
reads what single files need; restore.end {session, result}
recovery.start {point, vm?, disks?, port?, session?} → {host, name, disks: [{key, label, size, port}], …};
recovery.stop {session, result}
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from engine.config import EngineConfig
from engine.errors import InputError, VadplabError
from engine.events import new_id
from engine.report import Reporter
from engine.restore import disk, recovery
from engine.restore.served import Served
from engine.rpc.server import Call, Peer
from engine.service.jobs import Jobs


class ServedDisks:
    """Answers those methods. `spawn` runs work in the background and holds it until the service ends."""

    def __init__(self, config: EngineConfig, jobs: Jobs, spawn: Callable[[Any], None]) -> None:
        self._config = config
        self._jobs = jobs
        self._spawn = spawn
        self._methods: dict[str, Callable[[Call], Awaitable[Any]]] = {
            "restore.disk": self._disk,
            "restore.files": lambda call: self._disk(call, reads=True),
            "restore.end": lambda call: self._end(call.peer, call.param("session"), call.param("result")),
            "recovery.start": self._recover,
            "recovery.stop": lambda call: self._end(call.peer, call.param("session"), call.param("result")),
        }

    def knows(self, method: str) -> bool:
        """Whether it answers this method."""
        return method in self._methods

    async def handle(self, call: Call) -> Any:
        """Answers a call."""
        return await self._methods[call.method](call)

    def left(self, peer: Peer) -> None:
        """A console went away: nothing is served to it any more."""
        for session in list(peer.data.get("restores", {})):
            self._spawn(self._end(peer, session, "failed"))

    async def _disk(self, call: Call, *, reads: bool = False) -> dict[str, Any]:
        point, number, vm = call.param("point"), call.param("disk", int), call.param("vm", default=None)

        async def start(report: Reporter, servers: list[dict[str, Any]], session: str) -> Served:
            return await disk.start(
                self._config, report, servers, session, point=point, vm=vm, disk=number, reads=reads
            )

        return await self._begin(call, point, start)

    async def _recover(self, call: Call) -> dict[str, Any]:
        point, vm = call.param("point"), call.param("vm", default=None)
        disks, port = call.param("disks", list, default=[]), call.param("port", int, default=None)
        if port is not None and not 1 <= port <= 65535:
            raise InputError(f"port {port}: from 1 to 65535")

        async def start(report: Reporter, servers: list[dict[str, Any]], session: str) -> Served:
            return await recovery.start(
                self._config, report, servers, session, point=point, vm=vm, disks=disks, port=port
            )

        return await self._begin(call, point, start)

    async def _begin(
        self,
        call: Call,
        point: str,
        start: Callable[[Reporter, list[dict[str, Any]], str], Coroutine[Any, Any, Served]],
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
        going: Served | None = peer.data.get("restores", {}).pop(session, None)
        if going is not None:
            await going.close()
            going.events.close()
            await self._jobs.database(lambda db: db.end_session(session, result, {}))
        return {}
