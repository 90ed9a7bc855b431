# SPDX-License-Identifier: MIT
"""Instant recoveries of one Transport Service: a disk server (`engine.recovery`) for each disk, ended with its session.

recovery.start {session, folder, disk, port?} → {port}; recovery.stop {session} → {stopped}
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

from engine.errors import InputError, RemoteError
from engine.processes import Child, ProcessFailed

MODULE = "engine.recovery"
READY_DEADLINE = 60.0


class Recoveries:
    """Starts disk servers with this machine's configuration file, below its `repository`."""

    def __init__(self, config: Path, repository: Path, log: Path | None = None) -> None:
        self._config = config
        self._repository = repository.resolve()
        self._log = log
        self._running: defaultdict[str, list[Child]] = defaultdict(list)

    async def start(self, session: str, folder: str, disk: int, port: int | None) -> int:
        """Serves a disk of the visible point in `folder`; gives the port.

        Raises:
            InputError: not a folder of this repository. RemoteError: the disk server's reason. ProcessFailed.
        """
        path = Path(folder).resolve()
        if not path.is_relative_to(self._repository) or not path.is_dir():
            raise InputError(f"{folder}: not a folder of this machine's repository")
        arguments = ["--config", str(self._config), "--point", str(path), "--disk", str(disk)]
        arguments += ["--port", str(port)] if port is not None else []
        child = await Child.start(MODULE, arguments, deadline=READY_DEADLINE, log=self._log)
        if error := child.ready.get("error"):
            await child.stop()
            raise RemoteError(error)
        found = child.ready.get("port")
        if not isinstance(found, int):
            await child.stop()
            raise ProcessFailed("the disk server printed no port")
        self._running[session].append(child)
        return found

    async def stop(self, session: str) -> int:
        """Ends the disk servers of a session; gives how many there were."""
        children = self._running.pop(session, [])
        await asyncio.gather(*(child.stop() for child in children))
        return len(children)

    async def close(self) -> None:
        """Ends all of them."""
        for session in list(self._running):
            await self.stop(session)
