# SPDX-License-Identifier: MIT
"""Loop devices that free themselves (LO_FLAGS_AUTOCLEAR) when the last user is gone (linux/loop.h)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from pathlib import Path

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_GET_STATUS64 = 0x4C05
_AUTOCLEAR = 4
DEAD = (-1, -1)
_INFO = struct.Struct("<QQQQQIIII64s64s32s2Q")  # struct loop_info64
_CONFIG_HEAD = struct.Struct("<II")
_CONFIG_TAIL = struct.Struct("<8Q")


def attach(backing: Path, deadline: float = 10.0) -> tuple[Path, int]:
    """A loop device over `backing`: its path, and a descriptor that keeps it. Once it is mounted the descriptor may go.

    Raises:
        OSError: no loop devices here, or none became free in time.
    """
    end = time.monotonic() + deadline
    with backing.open("r+b") as file, open("/dev/loop-control", "r+b", buffering=0) as control:
        while True:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            path = Path(f"/dev/loop{number}")
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(fd, _LOOP_CONFIGURE, _config(file.fileno(), backing))
                except OSError:
                    os.close(fd)
                    raise
                return path, fd
            except OSError as exc:  # another process took it between the two calls, or its node is not there yet
                if exc.errno not in (errno.EBUSY, errno.ENOENT, errno.ENXIO) or time.monotonic() > end:
                    raise
                time.sleep(0.02)


def _config(fd: int, backing: Path) -> bytes:
    name = os.fsencode(backing)[:63]
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, name, b"", b"", 0, 0)
    return _CONFIG_HEAD.pack(fd, 0) + info + _CONFIG_TAIL.pack(*[0] * 8)


def identity(fd: int) -> tuple[int, int] | None:
    """Device and inode of the file behind a loop device; None when it is free."""
    try:
        info = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_INFO.size))
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return None
        raise
    device, inode, *_ = _INFO.unpack(info)
    return int(device), int(inode)


def _behind(fd: int) -> tuple[int, int] | None:
    """As `identity`; `DEAD` when the device still holds a file whose FUSE server is gone."""
    try:
        return identity(fd)
    except OSError as exc:
        if exc.errno in (errno.ECONNABORTED, errno.ENOTCONN):
            return DEAD
        raise


def wait_free(device: Path, file: tuple[int, int], deadline: float = 10.0) -> bool:
    """True when `device` no longer has `file` (an `identity`) behind it; False when it still has at the deadline."""
    end = time.monotonic() + deadline
    while True:
        with device.open("rb", buffering=0) as opened:
            if _behind(opened.fileno()) not in (file, DEAD):
                return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.01)
