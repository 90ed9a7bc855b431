# SPDX-License-Identifier: MIT
"""Client: makes calls over one connection that the dialer opened.

Every call has a deadline, or an idle limit (seconds without progress) when it may be long. Errors of the peer arrive as
`RemoteError` with the original's code, step, host, target, port and symptom.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.dialer import Connection
from engine.errors import ConnectError, ConnectTimedOut, RemoteError, VadplabError, from_oserror
from engine.events import EventLog
from engine.rpc import frames
from engine.rpc.identity import Identity, check_peer
from engine.rpc.tuning import tune

OPEN_DEADLINE = 10.0
CALL_DEADLINE = 30.0
WRITE_DEADLINE = 30.0

Progress = Callable[[dict[str, Any]], None]


class CallTimedOut(ConnectTimedOut):
    """A call got no answer before its deadline."""

    code = "wire.timed-out"
    advice = "A firewall cut the open connection, or the peer hangs: look at its log."


@dataclass(slots=True)
class _Pending:
    future: asyncio.Future[Any]
    on_progress: Progress | None
    last: float


class Client:
    """One connection to a server of the engine. Make it with `open`; `closed` is set when the connection has ended."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: Connection,
        host: str,
        events: EventLog | None,
    ) -> None:
        self.closed = asyncio.Event()
        self.connection = connection
        self.sent = 0
        self.received = 0
        self._reader = reader
        self._writer = writer
        self._host = host
        self._events = events
        self._next = 1
        self._pending: dict[int, _Pending] = {}
        self._lock = asyncio.Lock()
        self._why: VadplabError | None = None
        self._task = asyncio.create_task(self._receive())

    @classmethod
    async def open(
        cls,
        connection: Connection,
        identity: Identity,
        *,
        expect: str,
        deadline: float = OPEN_DEADLINE,
        step: str | None = None,
        events: EventLog | None = None,
    ) -> Client:
        """TLS on a connected socket.

        Args:
            expect: the machine name that the peer's certificate must carry. deadline: seconds for the handshake.
            step: the step in errors (default: the connection's). events: where the totals of bytes are written.

        Raises:
            TlsFailed, WrongPeer, ConnectTimedOut, ConnectReset.
        """
        host = identity.name
        where: dict[str, Any] = {
            "step": step or connection.step,
            "host": host,
            "target": connection.target,
            "port": connection.port,
        }
        tune(connection.sock)
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(
                    sock=connection.sock,
                    ssl=identity.client_context(),
                    server_hostname=expect,
                    ssl_handshake_timeout=deadline,
                    ssl_shutdown_timeout=2.0,
                ),
                deadline + 1,
            )
        except (OSError, EOFError, ssl.SSLError, TimeoutError) as exc:
            connection.sock.close()
            raise from_oserror(exc, **where) from exc
        except BaseException:
            connection.sock.close()
            raise
        try:
            check_peer(writer.get_extra_info("peercert"), expect, **where)
        except VadplabError:
            writer.close()
            raise
        if step is not None:
            connection.step = step
        return cls(reader, writer, connection, host, events)

    async def call(
        self,
        method: str,
        *,
        deadline: float | None = CALL_DEADLINE,
        idle: float | None = None,
        on_progress: Progress | None = None,
        step: str | None = None,
        **params: Any,
    ) -> Any:
        """Calls `method` and gives its result.

        Args:
            deadline: seconds for the whole call; None: unlimited, then give `idle`. idle: seconds without progress.
            on_progress: called with each progress of the peer. step: the step named in this side's errors.

        Raises:
            RemoteError: the peer's error. CallTimedOut, WireClosed: no answer; the connection ended.
        """
        loop = asyncio.get_running_loop()
        if self._why is not None or self.closed.is_set():
            raise self._ended(step)
        ident, self._next = self._next, self._next + 1
        entry = _Pending(loop.create_future(), on_progress, loop.time())
        self._pending[ident] = entry
        try:
            await self._send({"id": ident, "method": method, "params": params}, step)
            return await self._wait(entry, method, loop.time(), deadline, idle, step)
        except (asyncio.CancelledError, CallTimedOut):
            if not self.closed.is_set():
                self._writer.write(frames.pack({"id": ident, "cancel": True}))
            raise
        finally:
            self._pending.pop(ident, None)
            if entry.future.done() and not entry.future.cancelled():
                entry.future.exception()

    async def close(self) -> None:
        """Ends the connection; unfinished calls fail."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._writer.close()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._writer.wait_closed(), 3.0)

    async def _wait(
        self,
        entry: _Pending,
        method: str,
        start: float,
        deadline: float | None,
        idle: float | None,
        step: str | None,
    ) -> Any:
        loop = asyncio.get_running_loop()
        while True:
            limits = [start + deadline] if deadline is not None else []
            limits += [entry.last + idle] if idle is not None else []
            wait = max(0.0, min(limits) - loop.time()) if limits else None
            done, _ = await asyncio.wait([entry.future], timeout=wait)
            if done:
                try:
                    return entry.future.result()
                except frames.WireClosed:
                    raise self._ended(step) from None
            if idle is None or loop.time() >= entry.last + idle or (deadline and loop.time() >= start + deadline):
                raise CallTimedOut(
                    f"{self._host} to {self.connection.target}:{self.connection.port}: no answer to {method}",
                    **self._where(step),
                )

    async def _send(self, message: dict[str, Any], step: str | None) -> None:
        data = frames.pack(message)
        try:
            async with self._lock:
                self._writer.write(data)
                self.sent += len(data)
                async with asyncio.timeout(WRITE_DEADLINE):  # `wait_for` of Python 3.11 may lose a cancellation
                    await self._writer.drain()
        except (OSError, ssl.SSLError, TimeoutError) as exc:
            raise from_oserror(exc, **self._where(step)) from exc

    async def _receive(self) -> None:
        why: VadplabError = self._ended(None)
        try:
            while True:
                message, size = await frames.read_sized(self._reader)
                self.received += size
                self._dispatch(message)
        except asyncio.CancelledError:
            raise
        except frames.WireClosed:
            pass
        except VadplabError as exc:
            why = exc
        except (OSError, ssl.SSLError) as exc:
            why = from_oserror(exc, **self._where(None))
        finally:
            self._why = why
            self.closed.set()
            for entry in self._pending.values():
                if not entry.future.done():
                    entry.future.set_exception(why)
            if self._events is not None:
                self._events.emit(
                    "bytes",
                    step=self.connection.step,
                    attempt=self.connection.attempt,
                    sent=self.sent,
                    received=self.received,
                )
            self._writer.close()

    def _dispatch(self, message: Any) -> None:
        if not isinstance(message, dict) or not isinstance(message.get("id"), int):
            raise frames.FrameMalformed("message is not a map with an id", **self._where(None))
        entry = self._pending.get(message["id"])
        if entry is None:
            return  # an answer to a call that was given up
        if "progress" in message:
            entry.last = asyncio.get_running_loop().time()
            if entry.on_progress is not None and isinstance(message["progress"], dict):
                entry.on_progress(message["progress"])
        elif entry.future.done():
            return
        elif "error" in message:
            fields = message["error"] if isinstance(message["error"], dict) else {"message": str(message["error"])}
            entry.future.set_exception(RemoteError(fields))
        elif "result" in message:
            entry.future.set_result(message["result"])
        else:
            raise frames.FrameMalformed("message is no answer", **self._where(None))

    def _where(self, step: str | None) -> dict[str, Any]:
        return {
            "step": step or self.connection.step,
            "host": self._host,
            "target": self.connection.target,
            "port": self.connection.port,
        }

    def _ended(self, step: str | None) -> VadplabError:
        if isinstance(self._why, ConnectError) and not isinstance(self._why, frames.WireClosed):
            return self._why
        text = f"{self._host} to {self.connection.target}:{self.connection.port}: the connection was cut"
        return frames.WireClosed(text, **self._where(step))
