# SPDX-License-Identifier: MIT
"""The contents of a disk file, by the storage's NBD service. Blocking; every wait ends after `PATIENCE` seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path

import nbd

from fakes.core import fabric
from fakes.vcenter.passing import in_thread

PATIENCE = 30.0
PIECE = 1 << 20


class Contents:
    """One NBD connection.

    Raises:
        OSError, nbd.Error, FabricError: not there, or it failed. TimeoutError: no answer.
    """

    def __init__(self, socket: Path, export: str) -> None:
        self._nbd = nbd.NBD()
        self._nbd.set_export_name(export)
        self._nbd.aio_connect_socket(fabric.connect(socket, PATIENCE).detach())
        self._wait(self._nbd.aio_is_ready)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly those bytes."""
        buffer = bytearray(length)  # libnbd 1.14 leaks what nbd.Buffer holds
        cookie = self._nbd.aio_pread(buffer, offset)
        self._wait(lambda: self._nbd.aio_command_completed(cookie))
        return bytes(buffer)

    def write(self, offset: int, data: bytes) -> None:
        """Writes all of `data`."""
        cookie = self._nbd.aio_pwrite(data, offset)
        self._wait(lambda: self._nbd.aio_command_completed(cookie))

    def flush(self) -> None:
        """What was written is on the datastore."""
        cookie = self._nbd.aio_flush()
        self._wait(lambda: self._nbd.aio_command_completed(cookie))

    def _wait(self, done: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not done():
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("the storage does not answer")
            self._nbd.poll(max(1, int(left * 1000)))

    def close(self) -> None:
        """Ends the connection."""
        with contextlib.suppress(nbd.Error):
            self._nbd.aio_disconnect()
        del self._nbd  # closes its socket


@contextlib.contextmanager
def opened(socket: Path, export: str) -> Iterator[Contents]:
    """Contents for the length of the block."""
    contents = Contents(socket, export)
    try:
        yield contents
    finally:
        contents.close()


def pieces(socket: Path, export: str, start: int, length: int) -> AsyncIterator[bytes]:
    """A range of an export as the body of a reply; the connection is opened by the first piece."""

    def read() -> Generator[bytes, None, None]:
        with opened(socket, export) as contents:
            for offset in range(start, start + length, PIECE):
                yield contents.read(offset, min(PIECE, start + length - offset))

    return in_thread(read())
