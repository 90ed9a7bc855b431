# SPDX-License-Identifier: MIT
"""The fabric: what stands for hardware and hypervisor internals, as requests over Unix sockets in one folder.

One request and one reply, each a JSON object on a line: `{"method": "...", "params": {...}}` gives `{"result": ...}` or
`{"error": {"code": "...", "message": "..."}}`. A connection may carry many requests, one at a time. Binary values are
base64 text. `docs/architecture.md` lists the messages. Only fakes see this folder; no engine process is told of it.

Socket paths may exceed the kernel's 107 bytes: both ends go through `/proc/self/fd/<folder>/<name>`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]
MAX_LINE = 64 << 20


class FabricError(Exception):
    """The other end answered with an error; `code` is its stable name (for example `not-found`, `locked`)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class FabricUnavailable(FabricError):
    """Nobody answers on that socket."""

    def __init__(self, message: str) -> None:
        super().__init__("unavailable", message)


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name of the socket `path` that is short enough to bind or connect, valid inside the block."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def listen(path: Path, backlog: int = 64) -> socket.socket:
    """A listening Unix socket at `path`; a stale one is replaced."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with short_path(path) as name:
        sock.bind(name)
    sock.listen(backlog)
    return sock


def connect(path: Path, timeout: float) -> socket.socket:
    """A connected blocking Unix socket.

    Raises:
        FabricUnavailable: nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(timeout)
    try:
        with short_path(path) as name:
            sock.connect(name)
    except OSError as exc:
        sock.close()
        raise FabricUnavailable(f"{path.name}: {exc.strerror or exc}") from exc
    return sock


class FabricClient:
    """A blocking client that keeps one connection; safe to share between threads (one request at a time)."""

    def __init__(self, path: Path, timeout: float = 30.0) -> None:
        self.path = path
        self.timeout = timeout
        self._sock: socket.socket | None = None
        self._file: Any = None
        self._lock = threading.Lock()

    def call(self, method: str, *, deadline: float | None = None, **params: Any) -> Any:
        """Sends one request and returns its result. `deadline` is in seconds (default: the client's time-out).

        Raises:
            FabricError: the other end refused. FabricUnavailable: it is not there, or did not answer in time.
        """
        line = json.dumps({"method": method, "params": params}, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            fresh = self._sock is None
            try:
                reply = self._exchange(line, deadline)
            except (OSError, EOFError) as exc:
                self.close()
                if fresh or isinstance(exc, TimeoutError):
                    raise FabricUnavailable(f"{self.path.name} {method}: {exc or 'closed'}") from exc
                try:
                    reply = self._exchange(line, deadline)
                except (OSError, EOFError) as again:
                    self.close()
                    raise FabricUnavailable(f"{self.path.name} {method}: {again or 'closed'}") from again
        return _unwrap(json.loads(reply))

    def _exchange(self, line: bytes, deadline: float | None) -> bytes:
        if self._sock is None:
            self._sock = connect(self.path, self.timeout)
            self._file = self._sock.makefile("rb")
        self._sock.settimeout(deadline or self.timeout)
        self._sock.sendall(line)
        reply: bytes = self._file.readline(MAX_LINE)
        if not reply.endswith(b"\n"):
            raise EOFError("connection closed")
        return reply

    def close(self) -> None:
        """Closes the connection; the next call opens a new one."""
        for end in (self._file, self._sock):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()
        self._sock = self._file = None


async def call(path: Path, method: str, *, deadline: float = 30.0, **params: Any) -> Any:
    """One request from asyncio code; errors as in `FabricClient.call`."""

    def one() -> Any:
        client = FabricClient(path, timeout=deadline)
        try:
            return client.call(method, **params)
        finally:
            client.close()

    return await asyncio.to_thread(one)


async def serve(path: Path, handler: Handler) -> asyncio.Server:
    """Serves `handler(method, params)` on `path`. A `FabricError` from it becomes an error reply."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await _answer(handler, line), separators=(",", ":")).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # the peer went away, or sent a line longer than MAX_LINE: its connection ends, nothing else
        finally:
            writer.close()

    return await asyncio.start_unix_server(client, sock=listen(path), limit=MAX_LINE)


async def _answer(handler: Handler, line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
        method, params = request["method"], request.get("params") or {}
    except (ValueError, KeyError, TypeError) as exc:
        return {"error": {"code": "malformed", "message": f"not a request: {exc}"}}
    try:
        return {"result": await handler(method, params)}
    except FabricError as exc:
        return {"error": {"code": exc.code, "message": str(exc)}}
    except (TypeError, KeyError, ValueError) as exc:
        return {"error": {"code": "malformed", "message": f"{method}: {type(exc).__name__}: {exc}"}}


def _unwrap(reply: dict[str, Any]) -> Any:
    if "error" in reply:
        raise FabricError(str(reply["error"].get("code")), str(reply["error"].get("message")))
    return reply.get("result")
