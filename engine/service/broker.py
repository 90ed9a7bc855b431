# SPDX-License-Identifier: MIT
"""The broker: which run holds how many slots of which resource. Runs that must wait are served in the order they came."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from engine.scheduler import Plan, Resource, Task, plan


class Broker:
    """Slots of proxies and repositories. Resources are given with each request: their limits may change between runs."""

    def __init__(self) -> None:
        self._held: dict[str, Mapping[str, int]] = {}
        self._line: list[asyncio.Event] = []

    def load(self) -> Counter[str]:
        """Slots held now, by resource."""
        total: Counter[str] = Counter()
        for slots in self._held.values():
            total.update(slots)
        return total

    async def acquire(
        self,
        session: str,
        tasks: Sequence[Task],
        proxies: Sequence[Resource],
        repositories: Sequence[Resource],
        affinity: Mapping[str, str],
    ) -> Plan:
        """Waits for its turn, then for free slots, and holds them for `session`. Raises NoResource."""
        turn = asyncio.Event()
        self._line.append(turn)
        try:
            while True:
                if self._line[0] is turn:
                    found = plan(tasks, proxies, repositories, self.load(), affinity)
                    if found is not None:
                        self._held[session] = found.slots
                        return found
                turn.clear()
                await turn.wait()
        finally:
            self._line.remove(turn)
            self._wake()

    def release(self, session: str) -> None:
        """Gives back what a session holds; harmless when it holds nothing."""
        self._held.pop(session, None)
        self._wake()

    def _wake(self) -> None:
        if self._line:
            self._line[0].set()
