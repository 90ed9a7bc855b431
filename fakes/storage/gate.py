# SPDX-License-Identifier: MIT
"""The gate before a VM's disks: I/O passes it together, a snapshot or a merge passes it alone.

*Closed*: no I/O of the VM is under way and none starts; that is the instant of a snapshot. *Retired* grains are ones
that no map names any more; they are released only when every request that may still be reading them has left.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator

_PATIENCE = 60.0


class Gate:
    """Shared by I/O, exclusive for changes of the chain. `release` gets retired grains that nobody can reach."""

    def __init__(self, release: Callable[[list[int]], None]) -> None:
        self._release = release
        self._cond = threading.Condition(threading.Lock())
        self._closed = False
        self._waiting = 0
        self._epoch = 0
        self._active = [0, 0]
        self._fresh: list[int] = []  # retired in the current epoch
        self._ripe: list[int] = []  # retired before it: waits for requests of the other epoch

    def enter(self) -> int:
        """Starts a request; returns the token for `leave`. Raises OSError (EIO) if the gate stays closed too long."""
        with self._cond:
            if self._closed and not self._cond.wait_for(lambda: not self._closed, _PATIENCE):
                raise OSError(errno.EIO, "the VM's disks stayed frozen too long")
            self._active[self._epoch] += 1
            return self._epoch

    def leave(self, epoch: int) -> None:
        """Ends a request."""
        ready: list[int] = []
        with self._cond:
            self._active[epoch] -= 1
            if self._waiting and not self._active[epoch]:
                self._cond.notify_all()
            if self._fresh or self._ripe:
                ready = self._advance()
        if ready:
            self._release(ready)

    def retire(self, grains: list[int]) -> None:
        """Hands over grains that were just taken out of the map; called between `enter` and `leave`."""
        with self._cond:
            self._fresh.extend(grains)

    def _advance(self) -> list[int]:
        old, other = self._epoch, 1 - self._epoch
        if self._active[other]:
            return []
        ready = self._ripe
        self._ripe, self._fresh, self._epoch = self._fresh, [], other
        if not self._active[old]:
            ready, self._ripe = ready + self._ripe, []
        return ready

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Waits until no request is under way and lets none start inside the block.

        Raises:
            TimeoutError: requests under way did not end in time; the gate is open again.
        """
        deadline = time.monotonic() + _PATIENCE
        with self._cond:
            if not self._cond.wait_for(lambda: not self._closed, _PATIENCE):
                raise TimeoutError("another change of the chain is under way")
            self._closed = True
            self._waiting += 1
            try:
                idle = self._cond.wait_for(lambda: not any(self._active), deadline - time.monotonic())
            finally:
                self._waiting -= 1
            if not idle:
                self._closed = False
                self._cond.notify_all()
                raise TimeoutError("requests under way did not end")
        try:
            yield
        finally:
            with self._cond:
                ready, self._fresh, self._ripe = self._fresh + self._ripe, [], []
                self._closed = False
                self._cond.notify_all()
            if ready:
                self._release(ready)
