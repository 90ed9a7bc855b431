# SPDX-License-Identifier: MIT
"""The broker: which run holds how many slots of which resource. Runs that must wait are served in the order they came."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from engine.scheduler import Plan, Replacement, Resource, Task, plan, replace


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

    async def reassign(
        self, session: str, tasks: Sequence[Task], proxies: Sequence[Resource], lost: Collection[str]
    ) -> Replacement:
        """Another proxy for tasks of a session whose own is lost; waits for free slots, before runs that hold none yet.

        Raises:
            NoResource: no other proxy could serve them.
        """
        turn = asyncio.Event()
        self._line.insert(0, turn)
        try:
            while True:
                if self._line[0] is turn:
                    held = Counter(self._held.get(session, {}))
                    found = replace(tasks, proxies, lost, self.load() - held, held)
                    if found is not None:
                        self._held[session] = held + Counter(found.slots)
                        return found
                turn.clear()
                await turn.wait()
        finally:
            self._line.remove(turn)
            self._wake()

    def held(self, session: str, resource: str) -> int:
        """Slots of a resource that a session holds."""
        return int(self._held.get(session, {}).get(resource, 0))

    def release(self, session: str) -> None:
        """Gives back what a session holds; harmless when it holds nothing."""
        self._held.pop(session, None)
        self._wake()

    def _wake(self) -> None:
        if self._line:
            self._line[0].set()
