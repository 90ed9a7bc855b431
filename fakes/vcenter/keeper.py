# SPDX-License-Identifier: MIT
"""Keeps one world alive: starts vcsim with its inventory, watches it by real calls, and builds a new one when it dies.

A panic of vcsim in a method leaves an object locked for ever while the process goes on (vcsim reference section 3), so a
dropped connection of a living vcsim is treated as its death too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from pyVmomi import vim, vmodl

from fakes.vcenter.upstream import UpstreamGone
from fakes.vcenter.world import World

_log = logging.getLogger(__name__)
HEALTH_EVERY = 2.0
HEALTH_DEADLINE = 10.0
BACKOFF = (0.0, 0.2, 1.0, 5.0)


class NotReady(Exception):
    """No vcsim answers at the moment."""


class Keeper:
    """`current` gives the living world; there is at most one."""

    def __init__(self, make: Callable[[], Awaitable[World]], lost: Callable[[str], None]) -> None:
        self._make = make
        self._lost = lost
        self._world: World | None = None
        self._changed = asyncio.Event()
        self._suspect = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> World:
        """Builds the first world; whatever keeps it from coming up is raised here."""
        self._world = await self._make()
        self._changed.set()
        self._watcher = asyncio.create_task(self._keep())
        return self._world

    async def stop(self) -> None:
        """Ends watching, and vcsim."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        world, self._world = self._world, None
        if world is not None:
            await world.close()

    async def current(self, deadline: float) -> World:
        """The living world, waiting for one as long as `deadline` seconds. Raises NotReady."""
        try:
            async with asyncio.timeout(deadline):
                while self._world is None or not self._world.simulator.running or self._suspect.is_set():
                    self._changed.clear()
                    await self._changed.wait()
                return self._world
        except TimeoutError as exc:
            raise NotReady("the service is being restarted") from exc

    def suspect(self, world: World) -> None:
        """Says that this world's vcsim dropped a call."""
        if world is self._world:
            self._suspect.set()

    async def _keep(self) -> None:
        while True:
            world = self._world
            assert world is not None
            reason = await self._watch(world)
            self._world = None
            self._lost(reason)
            await world.close()
            self._suspect.clear()
            for attempt in range(1 << 30):
                await asyncio.sleep(BACKOFF[min(attempt, len(BACKOFF) - 1)])
                try:
                    self._world = await self._make()
                    break
                except Exception as exc:  # whatever it is, the next attempt may go better, and requests get a 503
                    _log.error("vcsim could not be rebuilt (%s: %s)", type(exc).__name__, exc)
            self._changed.set()

    async def _watch(self, world: World) -> str:
        ended = asyncio.ensure_future(world.simulator.ended())
        suspect = asyncio.ensure_future(self._suspect.wait())
        failures = 0
        try:
            while True:
                await asyncio.wait({ended, suspect}, timeout=HEALTH_EVERY, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    return f"vcsim ended with {ended.result()}"
                if suspect.done():
                    # a process that is about to end has a moment to do so, so that the reason is told right
                    await asyncio.wait({ended}, timeout=0.2)
                    return f"vcsim ended with {ended.result()}" if ended.done() else "vcsim dropped a call"
                try:
                    service = vim.ServiceInstance("ServiceInstance", None)
                    await asyncio.wait_for(world.admin.call(service, "CurrentTime"), HEALTH_DEADLINE)
                    failures = 0
                except (UpstreamGone, TimeoutError, vmodl.MethodFault) as exc:
                    failures += 1
                    _log.warning("health of vcsim: %s", exc or "no answer")
                    if failures == 3:
                        return "vcsim does not answer"
        finally:
            ended.cancel()
            suspect.cancel()
