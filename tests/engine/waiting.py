# SPDX-License-Identifier: MIT
"""Waits for a condition with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], *, deadline: float = 5.0) -> None:
    """Returns when `condition()` holds; raises TimeoutError after `deadline` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while not condition():
        if loop.time() > end:
            raise TimeoutError(f"condition did not hold within {deadline} s")
        await asyncio.sleep(0.01)
