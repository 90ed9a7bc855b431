# SPDX-License-Identifier: MIT
"""The timer: starts jobs by their schedules. Such a start is local: step 1 opens no connection.

It looks into the configuration database when a start is due and when a console has changed something, never in between.
Wall-clock time is looked at every minute, so that a clock that is put forward is noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from engine.errors import VadplabError
from engine.events import new_id
from engine.model.database import Database

LOOK = 60.0
RETRY = 30.0


class Clock(Protocol):
    """Time, so that tests have their own."""

    def now(self) -> datetime:
        """The time, with a zone."""

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """Returns when the event is set or after that many seconds (None: only by the event)."""


class WallClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """UTC."""
        return datetime.now(UTC)

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """See `Clock`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)


class Timer:
    """`start(job, session, at)` begins a run; `busy(job)` says whether one goes on (then a scheduled start is left out)."""

    def __init__(
        self,
        database: Callable[[Callable[[Database], Any]], Awaitable[Any]],
        start: Callable[[str, str, str], Awaitable[Any]],
        busy: Callable[[str], bool],
        note: Callable[[str], None],
        clock: Clock | None = None,
    ) -> None:
        self._database = database
        self._start = start
        self._busy = busy
        self._note = note
        self._clock: Clock = clock or WallClock()
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Schedules may have changed: look again."""
        self._changed.set()

    async def run(self) -> None:
        """Until it is cancelled. A database that does not answer is asked again later; nothing due is lost by that."""
        while True:
            self._changed.clear()
            try:
                coming = await self.tick()
            except VadplabError as exc:
                print(f"schedules: {exc}", file=sys.stderr, flush=True)
                coming = self._clock.now() + timedelta(seconds=RETRY)
            await self._until(coming)

    async def tick(self) -> datetime | None:
        """Starts what is due; gives the time of the next start."""
        now = self._clock.now()
        for due in await self._database(lambda db: db.job_book.take_due(now)):
            job, at = due["job"], due["at"]
            if due["missed"]:
                self._note(f"{job}: {due['missed']} scheduled starts were missed (the last was for {at})")
            if not due["start"]:
                continue
            if self._busy(job):
                self._note(f"{job}: not started for {at}: a run of it goes on")
                continue
            try:
                await self._start(job, new_id(), at)
            except VadplabError as exc:
                self._note(f"{job}: not started for {at}: {exc.message}")
        found: datetime | None = await self._database(lambda db: db.job_book.next_start(now))
        return found

    async def _until(self, at: datetime | None) -> None:
        while not self._changed.is_set():
            left = None if at is None else (at - self._clock.now()).total_seconds()
            if left is not None and left <= 0:
                return
            await self._clock.wait(self._changed, None if left is None else min(left, LOOK))
