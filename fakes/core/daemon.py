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
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """SIGKILL for this process when its parent ends. Also usable as `preexec_fn` of a child."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def ready(line: str) -> None:
    """Announces on standard output that this process answers."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


async def run(command: Sequence[str], seconds: float, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs a program that ends by itself, in a thread; its output and errors are in the result.

    Not asyncio's own subprocesses: one that is cancelled while its program ends complains of an unknown child.

    Raises:
        subprocess.TimeoutExpired: it did not end in time, and was killed.
    """
    options |= {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": seconds, "check": False}
    return await asyncio.to_thread(lambda: subprocess.run(command, **options))


def on_signal() -> asyncio.Event:
    """Set by SIGTERM or SIGINT; to be asked for before the first line says that somebody may send one."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    return done


async def until_signal() -> None:
    """Returns when SIGTERM or SIGINT arrives."""
    loop = asyncio.get_running_loop()
    done = on_signal()
    try:
        await done.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
