# SPDX-License-Identifier: MIT
"""The gateway's side towards vcsim: HTTP over loopback, with connections kept for the next request.

Nothing is ever sent twice: a call that vcsim dropped may have had its effect (or may be the one that breaks it).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fakes.vcenter.http import MAX_HEAD, BadRequest, Body, Headers, read_reply

MAX_REPLY = 512 << 20
CONNECT = 5.0
KEPT = 16  # idle connections


class UpstreamGone(Exception):
    """vcsim can not be reached, or dropped the connection without a reply (`dropped`)."""

    def __init__(self, message: str, *, dropped: bool = False) -> None:
        super().__init__(message)
        self.dropped = dropped


@dataclass
class UpstreamReply:
    """A reply whose body has been read."""

    status: int
    headers: Headers
    body: bytes


class Upstream:
    """A pool of connections to one vcsim process."""

    def __init__(self, host: str, port: int, dial: Callable[[], socket.socket] | None = None) -> None:
        """`dial` makes connected sockets where vcsim is in another network namespace; it is called in a thread."""
        self.host = host
        self.port = port
        self._dial = dial
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.closed = False

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        if self.closed:
            raise UpstreamGone("vcsim has ended")
        try:
            return await asyncio.wait_for(self._open(), CONNECT)
        except (OSError, TimeoutError) as exc:
            raise UpstreamGone(f"vcsim at {self.host}:{self.port}: {exc or 'no answer'}") from exc

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._dial is None:
            return await asyncio.open_connection(self.host, self.port, limit=MAX_HEAD)
        return await asyncio.open_connection(sock=await asyncio.to_thread(self._dial), limit=MAX_HEAD)

    @contextlib.asynccontextmanager
    async def exchange(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes] | Body, timeout: float
    ) -> AsyncIterator[tuple[int, Headers, Body]]:
        """Sends one request and gives `(status, headers, body)`; the body is to be read inside the block.

        Raises:
            UpstreamGone: not there, or no reply. TimeoutError: no reply within `timeout` seconds.
        """
        reader, writer = await self._connection()
        kept = False
        try:
            try:
                status, fields, stream = await asyncio.wait_for(
                    self._send(reader, writer, method, target, headers, body), timeout
                )
            except (ConnectionError, EOFError, asyncio.IncompleteReadError) as exc:
                raise UpstreamGone(f"vcsim ended the connection: {exc}", dropped=True) from exc
            yield status, fields, stream
            kept = stream.done and (fields.get("connection") or "").lower() != "close"
        finally:
            if kept and not self.closed and len(self._idle) < KEPT:
                self._idle.append((reader, writer))
            else:
                writer.close()

    async def _send(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        target: str,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | Body,
    ) -> tuple[int, Headers, Body]:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        lines += [f"{n}: {v}" for n, v in headers.end_to_end().without("host", "accept-encoding", "expect").items]
        lines.append(f"Content-Length: {len(body)}" if isinstance(body, bytes) else "Transfer-Encoding: chunked")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if isinstance(body, bytes):
            writer.write(head + body)
        else:
            writer.write(head)
            async for part in body:
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return await read_reply(reader, method)

    async def request(self, method: str, target: str, headers: Headers, body: bytes, timeout: float) -> UpstreamReply:
        """One request whose whole reply is wanted; errors as in `exchange`."""
        async with self.exchange(method, target, headers, body, timeout) as (status, fields, stream):
            try:
                return UpstreamReply(status, fields, await asyncio.wait_for(stream.read(MAX_REPLY), timeout))
            except (ConnectionError, EOFError, asyncio.IncompleteReadError, BadRequest) as exc:
                raise UpstreamGone(f"vcsim's reply broke off: {exc}", dropped=True) from exc

    def close(self) -> None:
        """Closes what is idle; no further connection is made."""
        self.closed = True
        while self._idle:
            self._idle.pop()[1].close()
