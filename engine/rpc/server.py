# SPDX-License-Identifier: MIT
"""Server: answers calls of the engine's wire format.

One handler answers all methods; each call runs as a task of its own, so that several can be in flight on a connection.
When the connection ends, or the caller cancels, its unfinished calls are cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from engine.errors import ConnectError, VadplabError
from engine.rpc import frames
from engine.rpc.identity import Identity, peer_names
from engine.rpc.tuning import tune

WRITE_DEADLINE = 30.0
HANDSHAKE_DEADLINE = 10.0
MAX_IN_FLIGHT = 256


class UnknownMethod(frames.WireError):
    """The server does not know the method that was called."""

    code = "wire.method"
    symptom = "unknown method"
    advice = "Check that both sides run the same version."


class BadParams(frames.WireError):
    """The parameters of a call are not those of the method."""

    code = "wire.params"
    symptom = "bad parameters"
    advice = "Check that both sides run the same version."


@dataclass(slots=True, eq=False)
class Peer:
    """One client connection. `data` is for the handler; `closed` is set when the connection has ended."""

    name: str
    address: tuple[str, int]
    data: dict[str, Any] = field(default_factory=dict)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Call:
    """One call: its method, parameters, and who calls."""

    method: str
    params: dict[str, Any]
    peer: Peer
    _send: Callable[[dict[str, Any]], Awaitable[None]]

    @property
    def peer_name(self) -> str:
        """The caller's machine name, from its certificate."""
        return self.peer.name

    @property
    def peer_address(self) -> tuple[str, int]:
        """The caller's address and port."""
        return self.peer.address

    async def progress(self, fields: dict[str, Any]) -> None:
        """Sends progress of this call to the caller."""
        await self._send({"progress": fields})

    def param(self, name: str, kind: type | tuple[type, ...] = str, default: Any = ...) -> Any:
        """A parameter of the given type. Raises BadParams when it is missing (without a default) or of another type."""
        value = self.params.get(name, None)
        if value is None:
            if default is ...:
                raise BadParams(f"{self.method}: parameter {name!r} is missing")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise BadParams(f"{self.method}: parameter {name!r} has the wrong type {type(value).__name__}")
        return value


Handler = Callable[[Call], Awaitable[Any]]


class Server:
    """Listens with an identity and hands each call to `handler`; its result (any msgpack value) is the reply."""

    def __init__(
        self,
        identity: Identity,
        handler: Handler,
        *,
        on_disconnect: Callable[[Peer], None] | None = None,
    ) -> None:
        self._identity = identity
        self._handler = handler
        self._on_disconnect = on_disconnect
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listens; gives the port (chosen by the kernel when 0). Raises VadplabError when the port is taken."""
        try:
            self._server = await asyncio.start_server(
                self._connected,
                host,
                port,
                ssl=self._identity.server_context(),
                ssl_handshake_timeout=HANDSHAKE_DEADLINE,
                ssl_shutdown_timeout=2.0,
            )
        except OSError as exc:
            raise ListenFailed(f"cannot listen on {host}:{port}: {exc.strerror or exc}", host=host, port=port) from exc
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stops listening, ends all connections and cancels their calls."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=5.0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        tune(writer.get_extra_info("socket"))
        names = peer_names(writer.get_extra_info("peercert"))
        peer = Peer(names[0] if names else "", tuple(writer.get_extra_info("peername")[:2]))
        try:
            await self._serve(peer, reader, writer)
        except asyncio.CancelledError:
            pass  # `close` ends the connection
        finally:
            peer.closed.set()
            if self._on_disconnect is not None:
                self._on_disconnect(peer)
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(writer.wait_closed(), 2.0)

    async def _serve(self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls: dict[int, asyncio.Task[None]] = {}
        lock = asyncio.Lock()

        async def send(message: dict[str, Any]) -> None:
            data = frames.pack(message)
            async with lock:
                writer.write(data)
                async with asyncio.timeout(WRITE_DEADLINE):  # as in the client
                    await writer.drain()

        try:
            while True:
                message = await frames.read(reader)
                ident, method, params = _request(message)
                if method is None:
                    if ident in calls:
                        calls[ident].cancel()
                    continue
                if ident in calls or len(calls) >= MAX_IN_FLIGHT:
                    raise frames.FrameMalformed("call id in use, or too many calls in flight")
                task = asyncio.create_task(self._answer(ident, method, params, peer, send))
                calls[ident] = task
                task.add_done_callback(functools.partial(_forget, calls, ident))
        except (frames.WireError, ConnectError, OSError, ssl.SSLError, TimeoutError):
            return
        finally:
            peer.closed.set()
            pending = list(calls.values())
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending, timeout=5.0)

    async def _answer(
        self,
        ident: int,
        method: str,
        params: dict[str, Any],
        peer: Peer,
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        async def reply(fields: dict[str, Any]) -> None:
            await send({"id": ident, **fields})

        answer: dict[str, Any]
        try:
            answer = {"result": await self._handler(Call(method, params, peer, reply))}
            frames.pack(answer)
        except asyncio.CancelledError:
            if peer.closed.is_set():
                raise
            answer = {"error": Cancelled(f"{method}: cancelled").to_dict()}
        except VadplabError as exc:
            answer = {"error": {**exc.to_dict(), "exit_code": exc.exit_code}}
        except Exception as exc:
            traceback.print_exc(file=sys.stderr)
            answer = {"error": VadplabError(f"{method}: {type(exc).__name__} in {self._identity.name}").to_dict()}
        with contextlib.suppress(OSError, TimeoutError, ssl.SSLError):
            await reply(answer)


class ListenFailed(VadplabError):
    """A process could not listen on its port."""

    code = "listen.failed"
    symptom = "port not available"
    advice = "Another process uses the port, or the address is not of this machine."


class Cancelled(VadplabError):
    """The call was cancelled before it was done."""

    code = "cancelled"
    symptom = "cancelled"
    advice = "Nothing to do: somebody asked for it."


def _forget(calls: dict[int, asyncio.Task[None]], ident: int, _task: asyncio.Task[None]) -> None:
    calls.pop(ident, None)


def _request(message: Any) -> tuple[int, str | None, dict[str, Any]]:
    """Id, method (None: cancel) and parameters of a message. Raises FrameMalformed."""
    if not isinstance(message, dict) or not isinstance(message.get("id"), int):
        raise frames.FrameMalformed("message is not a map with an id")
    if message.get("cancel") is True:
        return message["id"], None, {}
    method, params = message.get("method"), message.get("params", {})
    if not isinstance(method, str) or not isinstance(params, dict) or not all(isinstance(k, str) for k in params):
        raise frames.FrameMalformed("message is not a request")
    return message["id"], method, params
