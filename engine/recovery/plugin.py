# SPDX-License-Identifier: MIT
"""nbdkit's callbacks. Runs inside nbdkit (`nbdkit python plugin.py KEY=VALUE…`), which owns the one `_Process` below.

Keys: `point` (folder), `disk` (vSphere key), `overlay` (file; absent: a temporary one), `notes` (descriptor of a pipe: why it
could not start, as one JSON object).
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import nbdkit

from engine.errors import VadplabError
from engine.recovery.disk import RecoveredDisk

API_VERSION = 2


class _Process:
    """What this process serves."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.disk: RecoveredDisk | None = None

    def open(self) -> None:
        overlay = self.keys.get("overlay")
        try:
            self.disk = RecoveredDisk(
                Path(self.keys["point"]), int(self.keys["disk"]), Path(overlay) if overlay else None
            )
        except VadplabError as exc:
            os.write(int(self.keys["notes"]), json.dumps({**exc.to_dict(), "exit_code": exc.exit_code}).encode())
            raise RuntimeError(str(exc)) from exc
        finally:
            os.close(int(self.keys["notes"]))


_process = _Process()


def thread_model() -> int:
    """Requests of all clients run side by side."""
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def config(key: str, value: str) -> None:
    """Takes one key of the command line."""
    _process.keys[key] = value


def after_fork() -> None:
    """Opens disk and overlay, in the process that will serve."""
    _process.open()


def cleanup() -> None:
    """Closes them when nbdkit ends."""
    if _process.disk is not None:
        _process.disk.close()


def open(readonly: bool) -> RecoveredDisk:  # nbdkit names it
    """A client came; all see one disk."""
    if _process.disk is None:
        raise RuntimeError("not ready")
    return _process.disk


def get_size(disk: RecoveredDisk) -> int:
    """Bytes of the disk."""
    return disk.size


def can_multi_conn(disk: RecoveredDisk) -> bool:
    """What one connection wrote and flushed, all others see."""
    return True


def can_write(disk: RecoveredDisk) -> bool:
    """Writes go to the overlay."""
    return True


def can_extents(disk: RecoveredDisk) -> bool:
    """Clients may skip what is zeros."""
    return True


def can_fua(disk: RecoveredDisk) -> int:
    """nbdkit flushes after such a write."""
    return int(nbdkit.FUA_EMULATE)


def pread(disk: RecoveredDisk, buf: Any, offset: int, flags: int) -> None:
    """Fills the buffer; damaged data is an I/O error whose text stands in nbdkit's log."""
    try:
        disk.read(memoryview(buf), offset)
    except (VadplabError, OSError) as exc:
        nbdkit.set_error(exc.errno or errno.EIO if isinstance(exc, OSError) else errno.EIO)
        raise


def pwrite(disk: RecoveredDisk, buf: Any, offset: int, flags: int) -> None:
    """Writes to the overlay."""
    try:
        disk.write(memoryview(buf), offset)
    except (VadplabError, OSError) as exc:
        nbdkit.set_error(exc.errno or errno.EIO if isinstance(exc, OSError) else errno.EIO)
        raise


def flush(disk: RecoveredDisk, flags: int) -> None:
    """Makes the overlay durable."""
    disk.flush()


def extents(disk: RecoveredDisk, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    """Areas of data and of zeros; at most 32 MiB a call, the client asks again for the rest."""
    zeros = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    return [(at, length, zeros if empty else 0) for at, length, empty in disk.extents(offset, min(count, 32 << 20))]
