# SPDX-License-Identifier: MIT
"""The few system calls that decide whether a restore point exists, in one place.

Everything the store makes durable goes through these functions, so that a test can stop the world between any two of
them (`tests/engine/store/test_crash.py`).
"""

from __future__ import annotations

import os
from pathlib import Path


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
