# SPDX-License-Identifier: MIT
"""Whatever a client sends, the host answers or closes in time, keeps its threads, and serves the next client."""

from __future__ import annotations

import contextlib
import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.esxi import wire
from fakes.esxi.authd import Dialogue
from fakes.esxi.connection import Limits
from fakes.esxi.datastores import NfcRefused, split
from fakes.esxi.tickets import TicketRefused
from tests.fakes.esxi.conftest import Host
from tests.fakes.esxi.nfc_client import MAGIC, Authd, session

WORDS = ["SESSION ", "BANNER ", "THUMBPRINT_SHA2 ", "PROXY ", "USER ", "PASS ", "QUIT", "nfc", "PlainText", "\r\n", ":"]


def _no_ticket(session_id: str) -> None:
    raise TicketRefused("unknown")


@given(st.lists(st.one_of(st.binary(max_size=80), st.text(max_size=40).map(str.encode)), max_size=20))
def test_dialogue_answers_every_line_with_a_code_and_never_connects(lines: list[bytes]) -> None:
    dialogue = Dialogue(thumbprint_sha256="AA", redeem=_no_ticket)  # type: ignore[arg-type]
    for line in lines:
        answer = dialogue.feed(line)
        assert answer.ticket is None
        assert answer.text is None or (200 <= answer.code < 600 and "\n" not in answer.text)


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=44, max_size=44), st.binary(min_size=60, max_size=60))
def test_parsers_raise_only_wire_errors(header: bytes, io: bytes, opened: bytes) -> None:
    for parse, data in ((wire.parse_frame, header), (wire.parse_io, io), (wire.parse_open_file, opened)):
        with contextlib.suppress(wire.WireError):
            parse(data)  # type: ignore[operator]


@given(st.text(max_size=60))
def test_paths_are_plain_or_refused(text: str) -> None:
    with contextlib.suppress(NfcRefused):
        datastore, name = split(text)
        assert "/" not in datastore
        assert not {"", ".", ".."} & set(name.split("/"))


class TestServer:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(authd=0.3, idle=0.3)

    def _until_closed(self, sock: object) -> None:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while sock.recv(1 << 20):  # type: ignore[attr-defined]
                pass
        assert time.monotonic() - began < 20

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.lists(st.one_of(st.sampled_from(WORDS).map(str.encode), st.binary(max_size=30)), max_size=12))
    def test_authd(self, esxi: Host, data: list[bytes]) -> None:
        authd = Authd(esxi.address)
        with contextlib.suppress(ConnectionError):
            authd.stream.send(b"".join(data))
        self._until_closed(authd.stream.sock)
        authd.close()
        self._still_serves(esxi)

    frames = st.one_of(
        st.binary(max_size=64),
        st.builds(
            lambda kind, payload, extra: struct.pack("<IIII", MAGIC, kind, len(payload), 7) + payload + extra,
            st.sampled_from([1, 2, 3, 4, 5, 7, 9, 11, 22, 4000]),
            st.one_of(*(st.binary(min_size=n, max_size=n) for n in (0, 4, 8, 12, 16, 44, 60))),
            st.binary(max_size=20),
        ),
        st.builds(
            lambda *fields: struct.pack("<IIII", MAGIC, 7, 44, 1) + struct.pack("<QIIQIIIII", 0x100000001, *fields, 0),
            st.integers(0, 1),
            st.integers(0, 4),
            st.integers(0, 2**64 - 1) | st.sampled_from([0, 512]),
            st.sampled_from([0, 512, 2**32 - 1]),
            st.sampled_from([0, 512, 2**32 - 1]),
            st.sampled_from([0, 512, 2**32 - 1]),
            st.sampled_from([0, 8, 512, 2**32 - 1]),
        ),
    )

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.lists(frames, max_size=6), write=st.booleans())
    def test_aio(self, esxi: Host, data: list[bytes], write: bool) -> None:
        with session(esxi.address, esxi.ticket(write=write)) as nfc:
            nfc.open(esxi.path, write=write)
            with contextlib.suppress(ConnectionError):
                nfc.stream.send(b"".join(data))
            self._until_closed(nfc.stream.sock)
        self._still_serves(esxi)

    def _still_serves(self, esxi: Host) -> None:
        with session(esxi.address, esxi.ticket()) as nfc:
            handle, _ = nfc.open(esxi.path)
            assert len(nfc.read(handle, 0, 4096)) == 4096
        assert len(esxi.host._clients) < 5
