# SPDX-License-Identifier: MIT
"""HTTP/1.1 on asyncio streams: the little that a reverse proxy needs, both sides of it using the same messages.

*Head* is a start line with headers, *Body* a byte stream framed by Content-Length or by chunks, *Request* what a client
sent, *Reply* what goes back. Framing follows RFC 9112: both framings at once, bad lengths, bad chunk sizes and folded
or oversized headers are refused (`BadRequest`), since a proxy that guesses lets requests be smuggled.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from http import HTTPStatus

MAX_HEAD = 64 << 10
CHUNK = 64 << 10
_TOKEN = re.compile(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length")
)


class BadRequest(Exception):
    """The peer broke HTTP; `status` is what it gets before the connection ends."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Headers:
    """Header fields in their order; names are compared without case."""

    def __init__(self, items: list[tuple[str, str]] | None = None) -> None:
        self.items = list(items or [])

    def get(self, name: str) -> str | None:
        """The first value of that name."""
        name = name.lower()
        return next((value for key, value in self.items if key.lower() == name), None)

    def all(self, name: str) -> list[str]:
        """Every value of that name."""
        name = name.lower()
        return [value for key, value in self.items if key.lower() == name]

    def without(self, *names: str) -> Headers:
        """A copy that lacks those names."""
        drop = {name.lower() for name in names}
        return Headers([(key, value) for key, value in self.items if key.lower() not in drop])

    def end_to_end(self) -> Headers:
        """A copy that lacks what belongs to one connection only."""
        named = {t.strip().lower() for value in self.all("connection") for t in value.split(",")}
        return Headers([(k, v) for k, v in self.items if k.lower() not in HOP_BY_HOP and k.lower() not in named])


class Body:
    """A message body, read once; `begun` when somebody reads it, `done` when its end has been seen."""

    def __init__(self, reader: asyncio.StreamReader, length: int | None, *, chunked: bool = False) -> None:
        self._reader = reader
        self._left = length
        self._chunked = chunked
        self.done = not chunked and length == 0
        self.begun = False

    @classmethod
    def of(cls, data: bytes) -> Body:
        """A body that holds `data`."""
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return cls(reader, len(data))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun = True
        if self._chunked:
            async for part in self._chunks():
                yield part
        elif self._left is None:
            while part := await self._reader.read(CHUNK):
                yield part
        else:
            while self._left:
                part = await self._reader.read(min(self._left, CHUNK))
                if not part:
                    raise EOFError("the connection ended inside a body")
                self._left -= len(part)
                yield part
        self.done = True

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            line = (await self._line()).split(b";", 1)[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", line):
                raise BadRequest("malformed chunk size")
            size = int(line, 16)
            if size == 0:
                total = 0
                while trailer := await self._line():
                    total += len(trailer)
                    if total > MAX_HEAD:
                        raise BadRequest("trailer too large", 431)
                return
            while size:
                part = await self._reader.read(min(size, CHUNK))
                if not part:
                    raise EOFError("the connection ended inside a chunk")
                size -= len(part)
                yield part
            if await self._line():
                raise BadRequest("chunk longer than its size")

    async def _line(self) -> bytes:
        try:
            line = await self._reader.readuntil(b"\r\n")
        except asyncio.LimitOverrunError as exc:
            raise BadRequest("chunk header too long") from exc
        return line[:-2]

    async def discard(self, limit: int) -> None:
        """Takes what nobody reads, `limit` bytes at most; a reset would keep the client from reading the reply."""
        if self.begun:
            return
        async for part in self:
            limit -= len(part)
            if limit < 0:
                return

    async def read(self, limit: int) -> bytes:
        """The whole body; raises BadRequest(413) when it is longer than `limit` bytes."""
        if self._left is not None and self._left > limit:
            raise BadRequest(f"body longer than {limit} bytes", 413)
        parts, total = [], 0
        async for part in self:
            total += len(part)
            if total > limit:
                raise BadRequest(f"body longer than {limit} bytes", 413)
            parts.append(part)
        return b"".join(parts)


@dataclass
class Request:
    """One request. `client` is the peer's address and port."""

    method: str
    target: str
    version: str
    headers: Headers
    body: Body
    client: tuple[str, int] = ("", 0)

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.split("?", 1)[0]

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may carry another request."""
        options = {t.strip().lower() for value in self.headers.all("connection") for t in value.split(",")}
        return "close" not in options if self.version == "HTTP/1.1" else "keep-alive" in options


@dataclass
class Reply:
    """One reply. A body given as bytes gets a Content-Length; a stream is sent in chunks unless its headers tell a length."""

    status: int
    headers: Headers = field(default_factory=Headers)
    body: bytes | AsyncIterator[bytes] = b""
    length: int | None = None  # of a streamed body, or of what a HEAD describes

    @classmethod
    def text(cls, status: int, message: str, *headers: tuple[str, str]) -> Reply:
        """A plain text reply, one line."""
        return cls(status, Headers([("Content-Type", "text/plain; charset=utf-8"), *headers]), message.encode() + b"\n")

    @classmethod
    def xml(cls, status: int, body: bytes) -> Reply:
        """A SOAP reply."""
        return cls(status, Headers([("Content-Type", "text/xml; charset=utf-8")]), body)


async def read_head(reader: asyncio.StreamReader) -> list[str]:
    """Start line and header lines. Raises EOFError when the peer closed before sending anything."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as exc:
        raise BadRequest("header too large", 431) from exc
    except asyncio.IncompleteReadError as exc:
        if exc.partial.strip():
            raise BadRequest("the connection ended inside a header") from exc
        raise EOFError("closed") from exc
    if len(raw) > MAX_HEAD:
        raise BadRequest("header too large", 431)
    return raw[:-4].decode("latin-1").lstrip("\r\n").split("\r\n")


def parse_headers(lines: list[str]) -> Headers:
    """Header fields; raises BadRequest for folded lines, bad names and control characters."""
    items = []
    for line in lines:
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon or not _TOKEN.match(name) or any(ord(c) < 32 and c != "\t" for c in value):
            raise BadRequest("malformed header field")
        items.append((name, value))
    return Headers(items)


def _framing(headers: Headers) -> tuple[int | None, bool]:
    """`(length, chunked)` from the headers; length None = not told."""
    codings = [t.strip().lower() for value in headers.all("transfer-encoding") for t in value.split(",")]
    lengths = set(headers.all("content-length"))
    if codings and lengths:
        raise BadRequest("both Transfer-Encoding and Content-Length")
    if codings:
        if codings != ["chunked"]:
            raise BadRequest("unknown transfer coding", 501)
        return None, True
    if not lengths:
        return None, False
    text = lengths.pop()
    if lengths or not re.fullmatch(r"[0-9]{1,15}", text):
        raise BadRequest("malformed Content-Length")
    return int(text), False


async def read_request(reader: asyncio.StreamReader) -> Request:
    """The next request of a connection. Raises EOFError at its end, BadRequest when it is malformed."""
    line, *rest = await read_head(reader)
    words = line.split(" ")
    if len(words) != 3 or not _TOKEN.match(words[0]) or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest("malformed request line")
    method, target, version = words
    if not target.startswith("/") or any(not 33 <= ord(c) <= 126 for c in target):
        raise BadRequest("malformed request target")
    headers = parse_headers(rest)
    length, chunked = _framing(headers)
    return Request(method, target, version, headers, Body(reader, length or 0, chunked=chunked))


async def read_reply(reader: asyncio.StreamReader, method: str) -> tuple[int, Headers, Body]:
    """Status, headers and body of a reply to a request of that method. Raises EOFError, BadRequest."""
    while True:
        line, *rest = await read_head(reader)
        match = re.fullmatch(r"HTTP/1\.[01] ([0-9]{3})(?: .*)?", line)
        if not match:
            raise BadRequest("malformed status line")
        status = int(match[1])
        headers = parse_headers(rest)
        if status >= 200:
            break
    if method == "HEAD" or status in (204, 304):
        return status, headers, Body(reader, 0)
    length, chunked = _framing(headers)
    return status, headers, Body(reader, length, chunked=chunked)


async def write_reply(
    writer: asyncio.StreamWriter, reply: Reply, *, head_only: bool, keep_alive: bool, patience: float = 300.0
) -> None:
    """Sends a reply, streaming its body if it has one to stream. Raises TimeoutError when a part is not made or taken."""
    length = len(reply.body) if isinstance(reply.body, bytes) and reply.length is None else reply.length
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.end_to_end().items]
    lines.append(f"Content-Length: {length}" if length is not None else "Transfer-Encoding: chunked")
    lines.append("Connection: " + ("keep-alive" if keep_alive else "close"))
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if isinstance(reply.body, bytes):
        writer.write(head if head_only else head + reply.body)
        async with asyncio.timeout(patience):
            await writer.drain()
        return
    writer.write(head)
    try:
        while not head_only:
            async with asyncio.timeout(patience):
                part = await anext(reply.body, None)
            if part is None:
                break
            writer.write(part if length is not None else b"%x\r\n%s\r\n" % (len(part), part))
            async with asyncio.timeout(patience):
                await writer.drain()
        if length is None and not head_only:
            writer.write(b"0\r\n\r\n")
        async with asyncio.timeout(patience):
            await writer.drain()
    finally:
        if isinstance(reply.body, AsyncGenerator):
            await reply.body.aclose()
