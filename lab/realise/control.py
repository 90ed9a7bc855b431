# SPDX-License-Identifier: MIT
"""The control socket: requests from the command line to the supervisor, one JSON object a line, descriptors beside it.

`{"method": "...", "params": {...}}` gives `{"result": ...}` or `{"error": {VadplabError fields, exit_code}}`. A request
may carry descriptors (SCM_RIGHTS), sent with its line. While a request is being answered its connection may carry
`{"signal": N}` lines, and closing it cancels the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import VadplabError
from fakes.core.fabric import FabricUnavailable, connect, listen
from firewall_rules.errors import RuleError
from lab.errors import ControlFailed, LabGone, LabNotRunning, RemoteLabError, exit_status, of_rules
from lab.realise.folders import LabFolder

MAX_LINE = 1 << 24
MAX_FDS = 16
LAST_ANSWERS = 2.0


@dataclass
class Request:
    """One request. `fds` belong to the handler; `signals` receives what the client sends while it waits."""

    method: str
    params: dict[str, Any]
    fds: list[int]
    signals: asyncio.Queue[int] = field(default_factory=asyncio.Queue)

    def close_fds(self) -> None:
        """Closes the descriptors that came with the request."""
        while self.fds:
            os.close(self.fds.pop())


Handler = Callable[[Request], Awaitable[Any]]


class ControlServer:
    """Serves a handler on the lab's control socket."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._sock = listen(path)
        self._sock.setblocking(False)
        path.chmod(0o600)
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[dict[str, Any]]] = set()
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._sock)
            task = asyncio.create_task(self._serve(_Lines(client)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, lines: _Lines) -> None:
        task = asyncio.current_task()
        assert task is not None
        with contextlib.suppress(OSError), contextlib.closing(lines):
            while line := await lines.read():
                self._busy.add(task)
                try:
                    await self._exchange(lines, _parse(line, lines.take_fds()))
                finally:
                    self._busy.discard(task)

    async def _exchange(self, lines: _Lines, request: Request) -> None:
        """Answers one request; raises OSError when the client has closed before its answer was there."""
        answering = asyncio.create_task(self._answer(request))
        listening = asyncio.create_task(_listen(lines, request))
        self._answering.add(answering)
        try:
            await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
            listening.cancel()
            await asyncio.wait({listening})  # it must have let go of the socket before the next request
            if not answering.done():
                answering.cancel()
                await asyncio.wait({answering})
                raise ConnectionAbortedError
            await lines.write(answering.result())
        finally:
            self._answering.discard(answering)
            for task in (answering, listening):
                task.cancel()
            request.close_fds()

    async def _answer(self, request: Request) -> dict[str, Any]:
        try:
            return {"result": await self._handler(request)}
        except VadplabError as exc:
            return {"error": {**exc.to_dict(), "exit_code": exit_status(exc)}}
        except RuleError as exc:
            error = of_rules(exc)
            return {"error": {**error.to_dict(), "exit_code": error.exit_status}}
        except Exception as exc:
            traceback.print_exc()
            failure = ControlFailed(f"{request.method}: {type(exc).__name__}: {exc}")
            return {"error": {**failure.to_dict(), "exit_code": failure.exit_code}}

    async def close(self) -> None:
        """Stops accepting, cancels what is being answered, and ends every connection once its last answer is out."""
        self._accepting.cancel()
        for answering in list(self._answering):
            answering.cancel()
        if self._busy:
            await asyncio.wait(set(self._busy), timeout=LAST_ANSWERS)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(self._accepting, *self._tasks, return_exceptions=True)
        self._sock.close()


class _Lines:
    """Lines and descriptors of one non-blocking Unix socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._buffer = bytearray()
        self._fds: list[int] = []

    async def read(self) -> bytes:
        """The next line without its end; empty when the peer has closed. Raises OSError for an endless line."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE:
                raise OSError("line too long")
            await _readable(self._sock)
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, 1 << 16, MAX_FDS)
            except BlockingIOError:
                continue
            for fd in fds:
                os.set_inheritable(fd, False)
            self._fds += fds
            if not data:
                return b""
            self._buffer += data
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line

    def take_fds(self) -> list[int]:
        """The descriptors that have come so far; the caller owns them."""
        fds, self._fds = self._fds, []
        return fds

    async def write(self, document: dict[str, Any]) -> None:
        """Sends one line."""
        data = json.dumps(document, separators=(",", ":"), default=str).encode() + b"\n"
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    def close(self) -> None:
        """Closes the socket and descriptors nobody took."""
        for fd in self.take_fds():
            os.close(fd)
        self._sock.close()


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock)


async def _listen(lines: _Lines, request: Request) -> None:
    """Passes signal lines on; returns when the client closes."""
    with contextlib.suppress(OSError, ValueError):
        while line := await lines.read():
            document = json.loads(line)
            if isinstance(document, dict) and isinstance(document.get("signal"), int):
                request.signals.put_nowait(document["signal"])


def _parse(line: bytes, fds: list[int]) -> Request:
    try:
        document = json.loads(line)
        method, params = document["method"], document.get("params") or {}
        if not isinstance(method, str) or not isinstance(params, dict):
            raise TypeError("method is text and params an object")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Request("malformed", {}, fds)
    return Request(method, params, fds)


class ControlClient:
    """A blocking client of one lab's control socket, for the command line."""

    def __init__(self, path: Path, timeout: float = 30.0) -> None:
        """Connects.

        Raises:
            LabNotRunning: nobody listens.
        """
        try:
            self._sock = connect(path, timeout)
        except FabricUnavailable as exc:
            raise _silent(path.parent, exc) from exc
        self._file = self._sock.makefile("rb")

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def call(self, method: str, *, timeout: float | None = 30.0, fds: list[int] | None = None, **params: Any) -> Any:
        """One request and its result; `timeout` in seconds (None: wait for ever).

        Raises:
            RemoteLabError: the supervisor refused, with its error's fields. LabGone: it went away. ControlFailed: it is silent.
        """
        self.send(method, fds=fds, **params)
        return self.result(timeout)

    def send(self, method: str, *, fds: list[int] | None = None, **params: Any) -> None:
        """Sends a request without waiting for its result."""
        line = json.dumps({"method": method, "params": params}).encode() + b"\n"
        try:
            if fds:
                sent = socket.send_fds(self._sock, [line], fds)
                self._sock.sendall(line[sent:])
            else:
                self._sock.sendall(line)
        except OSError as exc:
            raise LabGone(f"{method}: the supervisor went away: {exc.strerror}") from exc

    def signal(self, number: int) -> None:
        """Passes a signal on to what the pending request runs."""
        with contextlib.suppress(OSError):
            self._sock.sendall(json.dumps({"signal": number}).encode() + b"\n")

    def fileno(self) -> int:
        """For select: readable when the result is there."""
        return self._sock.fileno()

    def result(self, timeout: float | None = 30.0) -> Any:
        """The result of the request that was sent; errors as in `call`."""
        self._sock.settimeout(timeout)
        try:
            line = self._file.readline(MAX_LINE)
        except TimeoutError as exc:
            raise ControlFailed(f"the supervisor did not answer within {timeout:g} s") from exc
        except OSError as exc:
            raise LabGone(f"the supervisor went away: {exc.strerror}") from exc
        if not line.endswith(b"\n"):
            raise LabGone("the supervisor went away before it answered")
        reply = json.loads(line)
        if "error" in reply:
            raise RemoteLabError(reply["error"])
        return reply.get("result")

    def close(self) -> None:
        """Closes the connection; a pending request is cancelled."""
        with contextlib.suppress(OSError):
            self._file.close()
            self._sock.close()


def _silent(folder: Path, exc: FabricUnavailable) -> LabNotRunning:
    """The error for a lab whose control socket does not answer: it may be on its way up or down."""
    lab = LabFolder(folder)
    if not lab.running():
        return LabNotRunning(f"the lab {lab.name} does not answer: {exc}")
    if lab.state().get("phase") == "starting":
        return LabNotRunning(f"the lab {lab.name} is still coming up", next="Wait until `vadplab up` returns.")
    return LabNotRunning(f"the lab {lab.name} is going down", next="Wait until `vadplab down` returns.")


def call(path: Path, method: str, *, timeout: float | None = 30.0, **params: Any) -> Any:
    """One request on a connection of its own."""
    with ControlClient(path) as client:
        return client.call(method, timeout=timeout, **params)
