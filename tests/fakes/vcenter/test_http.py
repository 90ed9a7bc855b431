# SPDX-License-Identifier: MIT
"""The HTTP front: framing, limits, keep-alive, and that malformed input ends one connection and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.vcenter.http import BadRequest, Headers, Reply, Request, read_request, write_reply
from fakes.vcenter.server import HttpsServer


def parse(data: bytes, limit: int = 1 << 20) -> tuple[Request, bytes]:
    """One request from bytes."""

    async def run() -> tuple[Request, bytes]:
        reader = asyncio.StreamReader(limit=64 << 10)
        reader.feed_data(data)
        reader.feed_eof()
        request = await read_request(reader)
        return request, await request.body.read(limit)

    return asyncio.run(run())


def test_lengths_and_chunks() -> None:
    head = b"POST /sdk?x=1 HTTP/1.1\r\nHost: h\r\n"
    request, body = parse(head + b"Content-Length: 5\r\n\r\nhello")
    assert (request.method, request.path, request.target, body) == ("POST", "/sdk", "/sdk?x=1", b"hello")
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n2;ext=1\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: x\r\n\r\n"
    assert parse(chunked)[1] == b"hello"
    assert parse(head + b"\r\n")[1] == b""


@pytest.mark.parametrize(
    "data",
    [
        b"GET /\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET http://elsewhere/ HTTP/1.1\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nab\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffff\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * (70 << 10) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b",
    ],
)
def test_malformed_requests_are_refused(data: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(data)


def test_size_limit() -> None:
    for framing in (b"Content-Length: 11\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nb\r\n"):
        with pytest.raises(BadRequest) as caught:
            parse(b"POST / HTTP/1.1\r\n" + framing + b"hello world\r\n0\r\n\r\n", limit=10)
        assert caught.value.status == 413


@given(
    st.binary(max_size=300)
    | st.lists(
        st.sampled_from([b"GET", b" ", b"/", b"HTTP/1.1", b"\r\n", b":", b"0", b"chunked", b"Transfer-Encoding: "]),
        max_size=30,
    ).map(b"".join)
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_request_or_a_refusal(data: bytes) -> None:
    try:
        parse(data)
    except (BadRequest, EOFError, asyncio.IncompleteReadError):
        pass


def test_hop_by_hop_fields_do_not_pass() -> None:
    fields = Headers([("Connection", "close, X-Own"), ("X-Own", "1"), ("Keep-Alive", "1"), ("Cookie", "c")])
    assert fields.end_to_end().items == [("Cookie", "c")]


async def talk(handler: Any, data: bytes) -> bytes:
    """What a server with that handler answers to bytes."""
    server = HttpsServer(handler, None)
    host, port = await server.start("127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(data)
        await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer
    finally:
        await server.stop()


def test_connections_are_kept_and_broken_ones_closed() -> None:
    async def echo(request: Request) -> Reply:
        return Reply(200, body=await request.body.read(100) or request.path.encode())

    get = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = asyncio.run(talk(echo, get + get + b"BROKEN\r\n\r\n" + get))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.count(b"HTTP/1.1 400 Bad Request") == 1
    answer = asyncio.run(talk(echo, b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi" + get))
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"hi")


def test_a_failing_handler_answers_500() -> None:
    async def fail(request: Request) -> Reply:
        raise RuntimeError("on purpose")

    answer = asyncio.run(talk(fail, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"on purpose" not in answer


def test_streamed_replies() -> None:
    async def parts() -> Any:
        yield b"abc"
        yield b"defg"

    async def stream(request: Request) -> Reply:
        return Reply(200, body=parts(), length=7 if request.path == "/known" else None)

    known = asyncio.run(talk(stream, b"GET /known HTTP/1.1\r\nConnection: close\r\n\r\n"))
    assert known.endswith(b"\r\n\r\nabcdefg")
    assert b"Content-Length: 7" in known
    chunked = asyncio.run(talk(stream, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"))
    assert chunked.endswith(b"\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
    assert write_reply is not None


@pytest.mark.parametrize("body", [b"whole", None], ids=["whole", "streamed"])
def test_stop_ends_a_connection_whose_reply_was_just_taken(body: bytes | None) -> None:
    """The client may read the last byte before the server's own wait for that has ended."""

    async def parts() -> Any:
        yield b"whole"

    async def handle(request: Request) -> Reply:
        return Reply(200, Headers(), parts() if body is None else body, length=5)

    async def run(steps: int) -> bool:
        server = HttpsServer(handle, None)
        reader, writer = await asyncio.open_connection(*await server.start("127.0.0.1", 0))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"whole")
        for _ in range(steps):
            await asyncio.sleep(0)
        stopping = asyncio.ensure_future(server.stop())
        try:
            return await asyncio.wait_for(reader.read(), 3) == b""
        except TimeoutError:
            return False
        finally:
            writer.close()
            await stopping

    assert [steps for steps in range(12) if not asyncio.run(run(steps))] == []
