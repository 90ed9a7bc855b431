# SPDX-License-Identifier: MIT
"""The Backup Manager hears of each step while this mover performs it: what goes into the events is also told as progress.

`{step, phase, text}` when a step begins, ends or fails, `{step}` alone as a sign of life; in the order of the events, all of them
before the call's answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from engine.errors import VadplabError
from engine.events import EventLog

SIGN_OF_LIFE = 5.0
"""Seconds."""

T = TypeVar("T")
Item = dict[str, Any]


class TellingEvents(EventLog):
    """Events of a process, whose step marks also go to `listener` (called in whatever thread writes them)."""

    listener: Callable[[Item], None] | None = None

    def emit(self, kind: str, *, step: str | None = None, task: str | None = None, **fields: Any) -> Item:
        """Writes one event; see `EventLog.emit`."""
        event = super().emit(kind, step=step, task=task, **fields)
        listener = self.listener
        if kind == "step" and listener is not None:
            listener({"step": step, "phase": fields.get("phase"), "text": fields.get("text", "")})
        return event


async def told(events: TellingEvents, progress: Callable[[Item], Awaitable[None]], work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; its step marks are passed to `progress` meanwhile. One at a time for the same events."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Item | None]()

    def listen(item: Item) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(queue.put_nowait, item)

    async def pump() -> None:
        current: str | None = None
        while True:
            try:
                item = await asyncio.wait_for(queue.get(), SIGN_OF_LIFE)
            except TimeoutError:
                item = {"step": current}
            if item is None:
                return
            current = item["step"]
            await progress(item)

    events.listener = listen
    pumping = asyncio.create_task(pump())
    try:
        return await work
    finally:
        events.listener = None
        loop.call_soon(queue.put_nowait, None)  # behind what other threads have put there
        with contextlib.suppress(VadplabError, OSError, TimeoutError):
            await pumping
