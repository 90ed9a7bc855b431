# SPDX-License-Identifier: MIT
"""Locks between the Data Movers of one proxy, which end with the process that holds them, however it ends.

A lock is a bound abstract Unix socket: no file stays behind, and the kernel gives it back when its holder dies. So a disk
that is attached to the proxy VM while nobody holds its lock was left by a crash.
"""

from __future__ import annotations

import hashlib
import socket
import time
from types import TracebackType

_POLL = 0.05


class ProxyLock:
    """A lock by name, valid within this machine (its network namespace). Use `try_take` or `take`, then `release`."""

    def __init__(self, *name: str) -> None:
        digest = hashlib.sha256("\0".join(name).encode()).hexdigest()[:40]
        self._address = f"\0vadplab-proxy-{digest}"
        self._sock: socket.socket | None = None

    def try_take(self) -> bool:
        """Whether this process has it now."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.bind(self._address)
        except OSError:
            sock.close()
            return False
        self._sock = sock
        return True

    def take(self, deadline: float) -> bool:
        """Waits at most `deadline` seconds; whether this process has it now."""
        end = time.monotonic() + deadline
        while not self.try_take():
            if time.monotonic() > end:
                return False
            time.sleep(_POLL)
        return True

    def release(self) -> None:
        """Gives it back. Harmless when it is not held."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def __enter__(self) -> ProxyLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.release()
