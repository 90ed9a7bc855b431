# SPDX-License-Identifier: MIT
"""A disk that this machine sees as a block device (or a file): read and written by worker threads, with a deadline.

A read of a device whose storage is gone can hang in the kernel for ever; so no thread of the data path touches the device
itself: it waits for a worker, and gives up when the worker does not come back.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.errors import VadplabError
from engine.modes.errors import DeviceReadFailed, DeviceSilent, WriteFailed
from engine.modes.source import Read, Source
from engine.modes.writer import DiskWriter

PATIENCE = 60.0
WORKERS = 2


class Pending:
    """An operation that a worker performs; `wait` at most `patience` seconds."""

    def __init__(self, work: Callable[[], None], late: Callable[[], VadplabError], patience: float) -> None:
        self._work = work
        self._late = late
        self._patience = patience
        self._done = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Performs it."""
        try:
            self._work()
        except BaseException as exc:
            self._error = exc
        self._done.set()

    def fail(self, error: BaseException) -> None:
        """Ends it without performing it."""
        self._error = error
        self._done.set()

    def wait(self) -> None:
        """Returns when it is done. Raises its error, or the one of a device that does not answer."""
        if not self._done.wait(self._patience):
            raise self._late()
        if self._error is not None:
            raise self._error


class Workers:
    """Threads that perform operations in the order in which they were given."""

    def __init__(self, count: int, name: str) -> None:
        self._queue: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._count = count
        for number in range(count):  # daemons: one that hangs in the kernel must not keep the process
            threading.Thread(target=self._loop, name=f"{name}-{number}", daemon=True).start()

    def put(self, pending: Pending) -> None:
        """Hands it to the next free worker."""
        self._queue.put(pending)

    def end(self, error: BaseException) -> None:
        """What was not begun fails with `error`; the threads end."""
        with contextlib.suppress(queue.Empty):
            while True:
                waiting = self._queue.get_nowait()
                if waiting is not None:
                    waiting.fail(error)
        for _ in range(self._count):
            self._queue.put(None)

    def _loop(self) -> None:
        while (pending := self._queue.get()) is not None:
            pending.run()


class Device:
    """An open device; `where`: step, host, target and port for errors. Raises OSError when it cannot be opened."""

    def __init__(self, path: Path, *, write: bool, where: dict[str, Any], patience: float = PATIENCE) -> None:
        self.path = path
        self.where = where
        self.patience = patience
        self._fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
        self.size = os.lseek(self._fd, 0, os.SEEK_END)
        self._workers = Workers(WORKERS, "device")
        self._lock = threading.Lock()
        self._busy = 0
        self._closed = False

    def submit(self, work: Callable[[int], None]) -> Pending:
        """Has `work(descriptor)` performed. Raises DeviceReadFailed when the device is closed."""
        pending = Pending(lambda: self._perform(work), self._late, self.patience)
        with self._lock:
            if self._closed:
                raise self._gone()
            self._workers.put(pending)
        return pending

    def close(self) -> None:
        """Ends what waits; an operation that is under way keeps the descriptor until it returns."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._workers.end(self._gone())
            if not self._busy:
                os.close(self._fd)

    def _perform(self, work: Callable[[int], None]) -> None:
        with self._lock:
            if self._closed:
                raise self._gone()
            self._busy += 1
        try:
            work(self._fd)
        finally:
            self._release()

    def _release(self) -> None:
        with self._lock:
            self._busy -= 1
            if self._closed and not self._busy:
                os.close(self._fd)

    def _gone(self) -> VadplabError:
        return DeviceReadFailed(f"{self.path}: the device was closed", **self.where)

    def _late(self) -> VadplabError:
        return DeviceSilent(f"{self.path}: no answer for {self.patience:.0f} s", **self.where)


class DeviceSource(Source):
    """A source over a device. `on_close`: called once, after the device was closed (it detaches the disk)."""

    step = "20b"

    def __init__(self, device: Device, capacity: int, on_close: Callable[[], None] | None = None) -> None:
        self.capacity = capacity
        self._device = device
        self._on_close = on_close

    def extents(self) -> None:
        """A device does not tell: all is read."""
        return

    def start(self, offset: int, view: memoryview) -> Read:
        """Hands the read to a worker."""
        self.check_range(offset, len(view))
        return self._device.submit(lambda fd: self._read(fd, offset, view))

    def close(self) -> None:
        """Closes the device, then gives it back."""
        self._device.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def _read(self, fd: int, offset: int, view: memoryview) -> None:
        done = 0
        try:
            while done < len(view):
                count = os.preadv(fd, [view[done:]], offset + done)
                if not count:
                    raise DeviceReadFailed(f"{self._device.path}: ends at {offset + done}", **self._device.where)
                done += count
        except OSError as exc:
            message = f"{self._device.path}: read at offset {offset}: {exc.strerror or exc}"
            raise DeviceReadFailed(message, **self._device.where) from exc


class DeviceWriter(DiskWriter):
    """Writes to a device. `on_close`: called once, after the device was closed (it detaches the disk)."""

    def __init__(self, device: Device, capacity: int, on_close: Callable[[], None] | None = None) -> None:
        self.capacity = capacity
        self._device = device
        self._on_close = on_close

    def write(self, offset: int, data: memoryview) -> None:
        """Writes all of `data`."""
        self.check_range(offset, len(data))
        self._device.submit(lambda fd: self._write(fd, offset, data)).wait()

    def flush(self) -> None:
        """Syncs the device."""
        self._device.submit(self._sync).wait()

    def close(self) -> None:
        """Closes the device, then gives it back."""
        self._device.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def _write(self, fd: int, offset: int, data: memoryview) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(fd, data[done:], offset + done)
        except OSError as exc:
            message = f"{self._device.path}: write at offset {offset}: {exc.strerror or exc}"
            raise WriteFailed(message, **self._device.where) from exc

    def _sync(self, fd: int) -> None:
        try:
            os.fsync(fd)
        except OSError as exc:
            raise WriteFailed(f"{self._device.path}: sync: {exc.strerror or exc}", **self._device.where) from exc
