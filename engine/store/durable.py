# SPDX-License-Identifier: MIT
"""The few system calls that decide whether a restore point exists, in one place.

Everything the store makes durable goes through these functions, so that a test can stop the world between any two of
them (`tests/engine/store/test_crash.py`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count


def truncate(fd: int, length: int) -> None:
    """Sets the file's length."""
    os.ftruncate(fd, length)


def sync(fd: int) -> None:
    """The file's data and length reach the device."""
    os.fsync(fd)


def sync_folder(path: Path) -> None:
    """The folder's entries reach the device."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """A new file with this content, synced."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_at(fd, data, 0)
        sync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Creates one folder and syncs its parent."""
    path.mkdir()
    sync_folder(path.parent)


def rename(old: Path, new: Path) -> None:
    """Gives `old` its final name in one step; `new` must not exist (an empty folder would be replaced)."""
    old.rename(new)


def exchange(one: Path, other: Path) -> None:
    """Lets two folders swap their names in one step (renameat2 with RENAME_EXCHANGE): nobody ever sees one name missing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, "this file system cannot exchange two folders in one step")
        raise OSError(number, os.strerror(number))


def remove_tree(folder: Path) -> None:
    """Removes a folder that is no longer visible; what cannot be removed is left for the next clean-up."""
    shutil.rmtree(folder, ignore_errors=True)
