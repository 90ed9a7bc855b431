# SPDX-License-Identifier: MIT
"""A run as the Backup Service sees it: its progress, who watches it, and its result document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

HISTORY = 2000


@dataclass(slots=True, eq=False)
class RunState:
    """One session. `kind`: job, rescan or restore; `subject`: the job's name. `document` is set when it has ended.

    `recorded`: the configuration database has an entry for it.
    """

    session: str
    kind: str
    subject: str
    options: dict[str, Any] = field(default_factory=dict)
    pending: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False
    recorded: bool = True
    _history: list[dict[str, Any]] = field(default_factory=list)
    _watchers: list[asyncio.Queue[dict[str, Any] | None]] = field(default_factory=list)

    def tell(self, item: dict[str, Any]) -> None:
        """Progress, to everyone who watches now or later."""
        if item.get("kind") != "task":
            self._history.append(item)
            del self._history[:-HISTORY]
        for queue in self._watchers:
            queue.put_nowait(item)

    def end(self, document: dict[str, Any]) -> None:
        """The run has ended."""
        self.document = document
        self.ended.set()
        for queue in self._watchers:
            queue.put_nowait(None)

    async def watch(self) -> AsyncIterator[dict[str, Any]]:
        """Its progress from the beginning until it has ended."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        for earlier in self._history:
            queue.put_nowait(earlier)
        if self.ended.is_set():
            queue.put_nowait(None)
        self._watchers.append(queue)
        try:
            while (item := await queue.get()) is not None:
                yield item
        finally:
            self._watchers.remove(queue)
