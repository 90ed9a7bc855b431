# SPDX-License-Identifier: MIT
"""The Data Movers of one Transport Service: one process per task, started on demand, reaped when it ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.processes import Child, ProcessFailed

MODULE = "engine.mover"


@dataclass(slots=True)
class Movers:
    """Starts movers with this machine's configuration file. `module` is the process to run (tests put their own)."""

    config: Path
    module: str = MODULE
    log: Path | None = None
    _running: dict[tuple[str, str, str], Child] = field(default_factory=dict)
    _watchers: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def count(self) -> int:
        """Movers that run now."""
        return len(self._running)

    async def start(self, session: str, task: str, role: str) -> dict[str, Any]:
        """Starts a mover and gives `{port, token}` of its ready line. A former mover of the same task is ended first.

        Raises:
            ProcessFailed: the mover did not become ready (for example: no free port in the range).
        """
        key = (session, task, role)
        if former := self._running.pop(key, None):
            await former.stop()
        child = await Child.start(
            self.module,
            ["--config", str(self.config), "--session", session, "--task", task, "--role", role],
            log=self.log,
        )
        port, token = child.ready.get("port"), child.ready.get("token")
        if not isinstance(port, int) or not isinstance(token, str):
            await child.stop()
            raise ProcessFailed(f"the mover of {task} printed no port and token")
        self._running[key] = child
        watcher = asyncio.create_task(self._reap(key, child))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return {"port": port, "token": token}

    async def stop(self, session: str, task: str | None = None) -> int:
        """Ends the movers of a session, or of one of its tasks; gives how many."""
        keys = [k for k in self._running if k[0] == session and task in (None, k[1])]
        children = [self._running.pop(key) for key in keys]
        await asyncio.gather(*(child.stop() for child in children))
        return len(children)

    async def close(self) -> None:
        """Ends every mover."""
        children = list(self._running.values())
        self._running.clear()
        await asyncio.gather(*(child.stop(2.0) for child in children))
        await asyncio.gather(*self._watchers, return_exceptions=True)

    async def _reap(self, key: tuple[str, str, str], child: Child) -> None:
        await child.wait()
        if self._running.get(key) is child:
            del self._running[key]
