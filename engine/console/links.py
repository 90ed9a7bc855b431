# SPDX-License-Identifier: MIT
"""Work over a data connection to a Data Mover, in a thread (step r3)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

from engine.dialer import Connection
from engine.events import EventLog
from engine.mover.datalink import DataLink

T = TypeVar("T")


async def over_link(
    connection: Connection, events: EventLog | None, step: str, work: Callable[[list[DataLink]], T]
) -> T:
    """The result of `work`, which puts the link that it opens into its argument.

    Cancelling cuts the link and waits for `work`. At the end the link's bytes are written as an event and the connection closed.
    """
    links: list[DataLink] = []
    working = asyncio.ensure_future(asyncio.to_thread(work, links))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        for link in links:
            link.close()
        with contextlib.suppress(Exception):
            await working
        raise
    finally:
        if events is not None and links:
            events.emit("bytes", step=step, attempt=connection.attempt, sent=links[0].sent, received=links[0].received)
        connection.sock.close()
