# SPDX-License-Identifier: MIT
"""Frames: what is packed comes back, and no input from the wire raises anything but the wire's own errors."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.rpc import frames

values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=200),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


async def _read_all(data: bytes) -> list[Any]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    found = []
    while True:
        try:
            found.append(await frames.read(reader))
        except frames.WireClosed:
            return found


@given(st.lists(values, max_size=4))
def test_stream_roundtrip(objects: list[Any]) -> None:
    assert asyncio.run(_read_all(b"".join(frames.pack(o) for o in objects))) == objects


@given(st.binary(max_size=300))
def test_any_bytes_give_a_value_or_a_wire_error(data: bytes) -> None:
    with contextlib.suppress(frames.WireError):
        frames.unpack(data)
    with contextlib.suppress(frames.WireError):
        asyncio.run(_read_all(data))


@given(values, st.data())
def test_truncated_frames_are_named(value: Any, data: st.DataObject) -> None:
    whole = frames.pack(value)
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(frames.FrameTruncated):
        asyncio.run(_read_all(whole[:cut]))


def test_blocking_side_agrees() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.settimeout(5)
        right.settimeout(5)
        frames.send(left, {"id": 1, "data": b"x" * 1000})
        assert frames.recv(right) == {"id": 1, "data": b"x" * 1000}
        left.sendall(frames.pack([1, 2])[:-1])
        left.shutdown(socket.SHUT_WR)
        with pytest.raises(frames.FrameTruncated):
            frames.recv(right)
        right.close()
    left, right = socket.socketpair()
    left.close()
    with right, pytest.raises(frames.WireClosed):
        frames.recv(right)


def test_limits_and_strange_values() -> None:
    with pytest.raises(frames.FrameTooLong):
        frames.length(frames.HEADER.pack(frames.MAX_FRAME + 1))
    with pytest.raises(frames.FrameTooLong):
        frames.pack(b"\0" * (frames.MAX_FRAME + 1))
    for bad in (object(), {1: object()}, 2**65):
        with pytest.raises(frames.FrameMalformed):
            frames.pack(bad)
    for body in (
        msgpack.packb(msgpack.ExtType(5, b"x")),
        msgpack.packb({1: 2}),
        b"\x91" * 5000,
        b"\xc1",
        b"\x01\x02",
        b"",
        b"\xa1\xff",
    ):
        with pytest.raises(frames.FrameMalformed):
            frames.unpack(body)
