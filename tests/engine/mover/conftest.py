# SPDX-License-Identifier: MIT
"""Coroutine tests of this folder run on an event loop of their own."""

from __future__ import annotations

import asyncio
import inspect

import pytest

DEADLINE = 90.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs `async def` tests; leaves others alone."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**wanted), DEADLINE))
    return True
