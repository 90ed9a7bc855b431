# SPDX-License-Identifier: MIT
"""RPCI on a Unix socket (guests reference section 4.2): hello `RPCI`, then `u32le length + text` both ways.

The guest asks; the answer is `1 <data>` or `0 <error>`. Both ends here: a blocking client for the guest, an asyncio server
for the hypervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from fakes.core import fabric

HELLO = b"RPCI"
MAX_MESSAGE = 65536
IDLE = 600.0
_LENGTH = struct.Struct("<I")

Handler = Callable[[str], Awaitable[str]]


class RpciError(Exception):
    """The hypervisor answered `0 <error>`; or (`unavailable`) it does not answer."""

    def __init__(self, text: str, *, unavailable: bool = False) -> None:
        super().__init__(text)
        self.unavailable = unavailable


class RpciClient:
    """The guest's end; one connection, one request at a time."""

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        self._path = path
        self._timeout = timeout
        self._sock: socket.socket | None = None

    def ask(self, text: str) -> str:
        """The data of the answer. Raises RpciError."""
        try:
            return self._exchange(text)
        except (OSError, EOFError, struct.error, fabric.FabricUnavailable) as exc:
            self.close()
            raise RpciError(f"the hypervisor does not answer: {exc}", unavailable=True) from exc

    def _exchange(self, text: str) -> str:
        if self._sock is None:
            self._sock = fabric.connect(self._path, self._timeout)
            self._sock.sendall(HELLO)
        data = text.encode()
        self._sock.sendall(_LENGTH.pack(len(data)) + data)
        (size,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if size > MAX_MESSAGE:
            raise EOFError("answer too long")
        status, _, rest = self._read(size).decode(errors="replace").partition(" ")
        if status != "1":
            raise RpciError(rest or "refused")
        return rest

    def _read(self, size: int) -> bytes:
        assert self._sock is not None
        data = self._sock.recv(size, socket.MSG_WAITALL) if size else b""
        if len(data) != size:
            raise EOFError("connection closed")
        return data

    def close(self) -> None:
        """Closes the connection; the next request opens a new one."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


async def serve(path: Path, handler: Handler) -> asyncio.Server:
    """Serves requests at `path`: `handler(text)` gives the data of a `1` answer, or raises RpciError for a `0`."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await asyncio.wait_for(reader.readexactly(len(HELLO)), 10.0) != HELLO:
                return
            while True:
                (size,) = _LENGTH.unpack(await asyncio.wait_for(reader.readexactly(_LENGTH.size), IDLE))
                if size > MAX_MESSAGE:
                    return
                text = (await asyncio.wait_for(reader.readexactly(size), 10.0)).decode(errors="replace")
                try:
                    answer = f"1 {await handler(text)}"
                except RpciError as exc:
                    answer = f"0 {exc}"
                data = answer.encode()
                writer.write(_LENGTH.pack(len(data)) + data)
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # the guest went away or fell silent: its connection ends, nothing else
        finally:
            with contextlib.suppress(Exception):
                writer.close()

    return await asyncio.start_unix_server(client, sock=fabric.listen(path))
