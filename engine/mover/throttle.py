# SPDX-License-Identifier: MIT
"""Throttling: a token bucket that holds the data link to a number of bytes a second."""

from __future__ import annotations

import threading
import time

BURST = 0.25
"""Seconds of the rate that may be sent at once after a pause."""


class Throttle:
    """Shared by the workers of one task; `rate` in bytes a second, None for no limit."""

    def __init__(self, rate: int | None) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def set_rate(self, rate: int | None) -> None:
        """Changes the limit from the next block on."""
        with self._lock:
            self.rate = rate

    def take(self, size: int, stop: threading.Event) -> None:
        """Waits until `size` bytes may be sent; returns early when `stop` is set."""
        with self._lock:
            if not self.rate:
                return
            now = time.monotonic()
            begin = max(self._free_at, now - BURST)
            self._free_at = begin + size / self.rate
            wait = begin - now
        if wait > 0:
            stop.wait(wait)
