# SPDX-License-Identifier: MIT
"""What a repository serves of a restore point to a console, and the connections that keep it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.events import EventLog
from engine.rpc.client import Client


@dataclass(slots=True)
class Served:
    """What the console needs to reach it, and the connections that keep the mover, or the disk servers, alive."""

    answer: dict[str, Any]
    transport: Client
    control: Client | None
    events: EventLog

    async def close(self) -> None:
        """Ends the mover, or the disk servers."""
        if self.control is not None:
            await self.control.close()
        await self.transport.close()
