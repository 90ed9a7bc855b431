# SPDX-License-Identifier: MIT
"""Habits of every long-running process of the fakes.

*Ready* is one line on standard output, printed once the process answers its own protocol; whoever starts it waits for
that line. It ends on SIGTERM and SIGINT, and dies with its parent (`die_with_parent`), children included.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """SIGKILL for this process when its parent ends. Also usable as `preexec_fn` of a child."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def ready(line: str) -> None:
    """Announces on standard output that this process answers."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


async def output(child: asyncio.subprocess.Process, seconds: float) -> tuple[bytes, bytes]:
    """What a child that ends by itself printed (output, errors). Whatever ends the wait, the child is gone and reaped.

    Raises:
        TimeoutError: it did not end in time.
    """
    try:
        return await asyncio.wait_for(child.communicate(), seconds)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise


async def until_signal() -> None:
    """Returns when SIGTERM or SIGINT arrives."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    try:
        await done.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
