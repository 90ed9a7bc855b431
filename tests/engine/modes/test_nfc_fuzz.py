# SPDX-License-Identifier: MIT
"""Whatever a host sends, the NFC client ends with an error of the catalogue."""

from __future__ import annotations

import socket
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import VadplabError
from engine.modes.nfc import aio, classic
from engine.modes.nfc.authd import authenticate
from engine.modes.nfc.errors import NfcCut, NfcProtocol
from engine.modes.nfc.stream import RawStream
from engine.modes.ticket import Ticket
from tests.engine.modes.test_nfc import _Scripted, fragment, scripted

GREETING = b"220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP\r\n"
FRAMES = st.builds(
    lambda kind, op, payload, extra: aio.frame(kind, op, payload, extra),
    st.integers(0, 30),
    st.integers(0, 3),
    st.binary(max_size=80),
    st.binary(max_size=64),
)


@given(st.binary(max_size=300))
def test_header(data: bytes) -> None:
    if len(data) < 16:
        return
    try:
        kind, size, op = aio.parse_header(data[:16])
    except NfcProtocol:
        return
    assert data[:16] == aio.HEADER.pack(aio.MAGIC, kind, size, op)


@given(st.binary(max_size=100))
def test_payloads(data: bytes) -> None:
    for parse in (aio.parse_fragment, aio.parse_opened, aio.parse_error):
        try:
            parse(data)
        except NfcProtocol:
            pass


@given(st.binary(min_size=44, max_size=44))
def test_a_fragment_that_is_accepted_lies_in_its_request(data: bytes) -> None:
    try:
        piece = aio.parse_fragment(data)
    except NfcProtocol:
        return
    assert piece.length > 0 and piece.at + piece.length <= piece.request


@given(st.lists(st.one_of(FRAMES, st.binary(max_size=100)), max_size=6))
def test_client_against_noise(parts: list[bytes]) -> None:
    client = scripted(b"".join(parts))
    with pytest.raises(VadplabError):
        client.start_read(1, 0, memoryview(bytearray(4096))).wait()


@given(st.binary(max_size=600))
def test_classic_handshake_against_noise(data: bytes) -> None:
    with pytest.raises((NfcProtocol, NfcCut)):
        classic.handshake(_Scripted(data))


@given(st.permutations(range(8)), st.integers(1, 8))
def test_any_order_of_fragments_fills_the_buffer(order: list[int], sectors: int) -> None:
    size = sectors * 512
    content = bytes((n // 512) % 251 + 1 for n in range(8 * size))
    answer = b"".join(fragment(0, n * size, content[n * size : (n + 1) * size], request=8 * size) for n in order)
    buffer = bytearray(8 * size)
    scripted(answer).start_read(1, 0, memoryview(buffer)).wait()
    assert buffer == content


@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=100).map(lambda tail: b"220 VMware Authentication Daemon Version 1.10: " + tail + b"\r\n"),
        st.binary(max_size=200).map(lambda tail: GREETING + b"\x16\x03\x03" + tail),
    )
)
def test_authd_against_noise(data: bytes) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        raw = RawStream(mine, host="proxy-1", target="esxi-1", port=902, step="19")
        with pytest.raises(VadplabError) as caught:
            authenticate(raw, Ticket("esxi-1", 902, "", "vpxa-nfc", "s"), ssl=False)
        assert (caught.value.step, caught.value.host, caught.value.target, caught.value.port) == (
            "19",
            "proxy-1",
            "esxi-1",
            902,
        )


@given(st.binary(max_size=400), st.integers(1, 600))
def test_unpacking_noise(data: bytes, size: int) -> None:
    packed = zlib.compress(data)
    for stream, length in ((data, size), (packed, size), (packed[:-1], max(len(data), 1)), (packed + b"x", size)):
        room = bytearray(length)
        try:
            aio.unpack(stream, memoryview(room))
        except NfcProtocol:
            continue
        assert zlib.decompressobj().decompress(stream) == room and len(room) == length
