# SPDX-License-Identifier: MIT
"""Connections of the Backup Service itself to Transport Services and Data Movers (rescan, restore, lists)."""

from __future__ import annotations

from typing import Any

from engine.config import EngineConfig
from engine.events import EventLog
from engine.rpc.client import Client


async def connect(
    config: EngineConfig, events: EventLog, server: dict[str, Any], *, step: str | None, port: int | None = None
) -> Client:
    """A connection to a server's Transport Service, or to another port of it."""
    dialer = config.dialer(events)
    connection = await dialer.dial(server["address"], port or server["port"], step=step, name=server["name"])
    return await Client.open(connection, config.make_identity(), expect=server["name"], events=events)
