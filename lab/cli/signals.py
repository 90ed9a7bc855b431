# SPDX-License-Identifier: MIT
"""Signals that this process gets are passed on to a command inside the lab."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)
TERMINAL = (*STOPPING, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def forwarded(send: Callable[[int], None], numbers: tuple[signal.Signals, ...] = STOPPING) -> Iterator[None]:
    """While inside, each of these signals is handed to `send` in place of ending this process."""

    def forward(number: int, frame: FrameType | None) -> None:
        send(number)

    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
