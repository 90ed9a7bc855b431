# SPDX-License-Identifier: MIT
"""Sockets and child processes inside another network namespace, given as an open descriptor of it.

A socket belongs for ever to the namespace in which it was made, so only its creation happens there, on a thread that
ends afterwards. `os.setns` exists from Python 3.12; the floor is 3.11, hence ctypes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1


def enter(netns: int) -> None:
    """Moves the calling thread into the network namespace `netns`; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(netns, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def socket_in(netns: int | None, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of that namespace (None: of this one)."""
    if netns is None:
        return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def make() -> None:
        try:
            enter(netns)
            made.append(socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol))
        except OSError as exc:
            failed.append(exc)

    thread = threading.Thread(target=make, name="socket-in-namespace")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def child_setup(netns: int | None) -> Callable[[], None]:
    """A `preexec_fn`: the child enters `netns` and dies with its parent."""
    libc = ctypes.CDLL(None, use_errno=True)

    def setup() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if netns is not None and libc.setns(netns, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    return setup
