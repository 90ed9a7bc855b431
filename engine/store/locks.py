# SPDX-License-Identifier: MIT
"""Locks on a VM's restore points, held by descriptors (flock): the kernel drops them when the holder ends, however it ends.

Two locks per VM folder, because adding a point disturbs no reader:
    chain    on the folder itself. Shared: read (restore, verify, instant recovery, append). Exclusive: exchange and remove.
    append   on the file `.<folder>.append` beside it. Shared: a full is being made. Exclusive: an incremental, a merge or an import.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from engine.store.errors import ChainLocked, from_write_error

_POLL = 0.05


class Lock:
    """One lock of one VM folder, released by `close`, by leaving the context, or by the end of the process."""

    def __init__(self, fd: int, what: str) -> None:
        self._fd = fd
        self._what = what

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def change(self, *, exclusive: bool, wait: float) -> None:
        """Makes the lock exclusive or shared.

        Raises:
            ChainLocked: others hold it after `wait` seconds. Then it may be held as before or not at all: close it.
        """
        _take(self._fd, exclusive, wait, self._what)

    def close(self) -> None:
        """Gives the lock back; harmless when called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def chain(folder: Path, *, exclusive: bool = False, wait: float = 0.0) -> Lock:
    """Locks the chain of the VM folder `folder`; `wait`: seconds to wait for other holders.

    Raises:
        ChainLocked: somebody else holds it. StoreError: the folder cannot be opened.
    """
    state = "in use (by a job, a restore, a verification or an instant recovery)" if exclusive else "being changed"
    return _open(folder, os.O_RDONLY | os.O_DIRECTORY, f"the restore points in {folder} are {state}", exclusive, wait)


def append(folder: Path, *, exclusive: bool, wait: float = 0.0) -> Lock:
    """Locks the right to add restore points to the VM folder `folder`. Raises as `chain`."""
    what = f"another session adds or merges restore points in {folder}"
    return _open(folder.with_name(f".{folder.name}.append"), os.O_RDWR | os.O_CREAT, what, exclusive, wait)


def folder_lock(folder: Path) -> int | None:
    """A descriptor that holds a folder's own lock; None when somebody holds it already, or the folder is gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
    os.close(fd)
    return None


def _open(path: Path, flags: int, what: str, exclusive: bool, wait: float) -> Lock:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise from_write_error(exc, str(path)) from exc
    try:
        _take(fd, exclusive, wait, what)
    except BaseException:
        os.close(fd)
        raise
    return Lock(fd, what)


def _take(fd: int, exclusive: bool, wait: float, what: str) -> None:
    operation = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, operation)
            return
        except OSError as exc:
            if exc.errno != errno.EWOULDBLOCK:
                raise from_write_error(exc, what) from exc
        if time.monotonic() >= end:
            raise ChainLocked(what)
        time.sleep(_POLL)
