# SPDX-License-Identifier: MIT
"""Waiting for several things at once, as sequences of steps need it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from engine.errors import VadplabError
from engine.rpc.frames import WireClosed

T = TypeVar("T")


class Closing(Protocol):
    """Something with a connection that may end."""

    @property
    def closed(self) -> asyncio.Event:
        """Set once it has ended."""


async def every(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs all at the same time. The first error cancels the others, waits for them, and is raised."""
    running = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    errors = [e for t in running if not t.cancelled() and (e := t.exception()) is not None]
    if errors:
        raise errors[0]


async def until_one_raises(running: Sequence[asyncio.Task[None]]) -> None:
    """Returns when all have ended, or raises the first error. Unlike `asyncio.gather` it does not pass a cancellation on:
    the caller cancels them once, and what they do then to clean up is not cancelled a second time."""
    if running:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()


async def either(event: asyncio.Event, task: asyncio.Task[Any]) -> None:
    """Returns when the event is set or the task has ended."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


async def to_the_end(work: Coroutine[Any, Any, None], *, patience: float | None = None) -> None:
    """For what must not be left half-done (a thaw, a commit): a cancellation that comes meanwhile waits until it is done.

    patience: seconds that the cancellation waits at most; then `work` is cancelled too.
    """
    task = asyncio.create_task(work)
    loop = asyncio.get_running_loop()
    cancelled: asyncio.CancelledError | None = None
    end: float | None = None
    while not task.done():
        if end is not None and loop.time() >= end:
            task.cancel()
        try:
            await asyncio.wait([task], timeout=None if end is None else max(0.05, end - loop.time()))
        except asyncio.CancelledError as exc:
            cancelled = exc
            if end is None and patience is not None:
                end = loop.time() + patience
    error = None if task.cancelled() else task.exception()
    if cancelled is not None:
        raise cancelled
    if error is not None:
        raise error


async def unless_closed(work: Coroutine[Any, Any, T], peer: Closing, text: str, *, step: str) -> T:
    """The result of `work`; raises WireClosed with `text` when the connection to `peer` ends before it."""
    task, closed = asyncio.create_task(work), asyncio.create_task(peer.closed.wait())
    try:
        await asyncio.wait([task, closed], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise WireClosed(text, step=step)
        return task.result()
    finally:
        for one in (task, closed):
            one.cancel()
        await asyncio.gather(task, closed, return_exceptions=True)


async def quietly(work: Awaitable[Any], deadline: float = 10.0) -> None:
    """For clean-up: waits at most `deadline` seconds, and lets errors of the catalogue and the network pass."""
    with contextlib.suppress(VadplabError, OSError, TimeoutError):
        await asyncio.wait_for(work, deadline)
