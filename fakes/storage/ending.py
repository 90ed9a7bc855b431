# SPDX-License-Identifier: MIT
"""The end of the process: SIGTERM and SIGINT end it even while NBD clients stay connected.

nbdkit alone would wait for its clients to leave. So the launcher blocks both signals before it becomes nbdkit (a mask
outlives exec and is inherited by every thread), and one thread here waits for them: requests under way are answered,
then the clients' connections are shut.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
_PAUSE = 0.05
_GENTLE_ROUNDS = 40  # two seconds in which a client may still take its replies


class Ending:
    """Waits for a signal in a thread, calls `stop`, and shuts connections made to the listening socket `listener`."""

    def __init__(self, listener: int, stop: Callable[[], None]) -> None:
        self._listener = listener
        self._stop = stop
        self._ended = threading.Event()

    def start(self) -> None:
        """Starts the thread. The signals must be blocked in all threads."""
        threading.Thread(target=self._run, name="ending", daemon=True).start()

    def ended(self) -> None:
        """Tells the thread that all connections are gone."""
        self._ended.set()

    def _run(self) -> None:
        signal.sigwait(SIGNALS)
        self._stop()
        rounds = 0
        while not self._ended.is_set():
            with contextlib.suppress(OSError):  # nbdkit has closed its listening socket: it is at its end
                shut_connections(self._listener, socket.SHUT_RD if rounds < _GENTLE_ROUNDS else socket.SHUT_RDWR)
            rounds += 1
            self._ended.wait(_PAUSE)


def shut_connections(listener: int, how: int) -> None:
    """Shuts every connection of this process that was accepted from the listening socket `listener`."""
    with socket.socket(fileno=os.dup(listener)) as own:
        address = _address(own)
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed by its owner meanwhile, or not connected any more
            if stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                with socket.socket(fileno=os.dup(int(entry.name))) as sock:
                    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and _address(sock) == address:
                        sock.shutdown(how)


def _address(sock: socket.socket) -> tuple[int, object]:
    """What a listening socket shares with the connections accepted from it: its path, or its port."""
    name = sock.getsockname()
    return sock.family, name[1] if isinstance(name, tuple) else name
