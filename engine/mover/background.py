# SPDX-License-Identifier: MIT
"""Blocking work of the data path behind asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

PROGRESS = 0.5
"""Seconds between two reports."""

T = TypeVar("T")
Report = Callable[[dict[str, Any]], Awaitable[None]]


def background(function: Callable[[], T]) -> asyncio.Future[T]:
    """Runs a blocking function in a daemon thread of its own: an end of the process never waits for it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
            future.exception()  # whoever awaits it sees it; nobody has to
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="mover-work", daemon=True).start()
    return future


async def reported(work: asyncio.Future[T], report: Report, state: Callable[[], dict[str, Any]]) -> T:
    """The result of `work`; until then `state` is reported again and again."""
    while not (await asyncio.wait([work], timeout=PROGRESS))[0]:
        await report(state())
    return work.result()
