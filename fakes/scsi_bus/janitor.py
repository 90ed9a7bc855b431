# SPDX-License-Identifier: MIT
"""The janitor: a process that waits for the end of the bus and takes all devices away, also when the bus was killed.

It holds the folder's lock until it is done, so that the next bus on the same folder begins with an empty one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path

from fakes.scsi_bus.device import clear

_WAIT = 10.0
_POLL = 0.01


def lock(folder: Path) -> int:
    """The folder's lock, as a descriptor, once nobody else has it. Raises TimeoutError, OSError."""
    fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + _WAIT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(fd)
                raise TimeoutError(f"another bus uses {folder}") from None
            time.sleep(_POLL)


def watch(folder: Path, held: int) -> None:
    """Forks the janitor of this process. To be called while there is one thread.

    Args:
        held: the lock's descriptor; both processes keep it.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(reading)
        # `writing` stays open for as long as this process lives
        return
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        os.close(writing)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        # whoever waits for the end of some other descriptor must not wait for us
        for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if fd > 2 and fd not in (reading, held):
                with contextlib.suppress(OSError):
                    os.close(fd)
        os.read(reading, 1)
        clear(folder)
    finally:
        os._exit(0)
