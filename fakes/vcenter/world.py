# SPDX-License-Identifier: MIT
"""*World*: one life of vcsim and all that belongs to it: connections, our login, references, what to patch in replies.

When vcsim dies its world is thrown away and another one is built; nothing of it is carried over by reference.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from fakes.vcenter.admin import AdminSession
from fakes.vcenter.builder import Places
from fakes.vcenter.sanitise import Sanitiser
from fakes.vcenter.upstream import Upstream


class Running(Protocol):
    """A vcsim that runs: a child, a container, or one that somebody else keeps."""

    host: str
    port: int

    @property
    def running(self) -> bool: ...
    async def ended(self) -> int: ...
    async def stop(self) -> None: ...


@dataclass
class World:
    """A running vcsim with its inventory. `snapshots`: VM name → (snapshot reference → the storage's snapshot id)."""

    simulator: Running
    upstream: Upstream
    admin: AdminSession
    sanitiser: Sanitiser
    places: Places = field(default_factory=Places)
    snapshots: dict[str, dict[str, Any]] = field(default_factory=dict)
    collectors: dict[str, asyncio.Future[Any]] = field(default_factory=dict, repr=False)  # session → its collector
    stubs: dict[str, bytes] = field(default_factory=dict)  # `/folder` target → descriptor text

    async def close(self) -> None:
        """Ends vcsim, if it is ours."""
        self.upstream.close()
        await self.simulator.stop()
