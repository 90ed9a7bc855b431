# SPDX-License-Identifier: MIT
"""Direct SAN against a real iSCSI target: what a refused, hidden, blocked, hanging or dying SAN looks like; and its parsers."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConnectRefused, ConnectTimedOut, VadplabError
from engine.modes import layout as layouts
from engine.modes import san
from engine.modes.errors import (
    SanCredentials,
    SanCut,
    SanLoginRefused,
    SanNotVisible,
    SanProtocol,
    SanReadFailed,
    SanSilent,
    SanUnsupported,
)
from engine.modes.iscsi import scsi
from engine.modes.iscsi.session import Login
from engine.modes.layout import Layout
from tests.engine.modes.esxi import sample
from tests.engine.modes.san_array import LOGIN, NAA, Served, array, lun_of
from tests.processes import suspend

SIZE = 2 << 20
CONTENT = sample(SIZE)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with array(tmp_path_factory.mktemp("san"), *lun_of(CONTENT)) as found:
        yield found


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    with array(tmp_path, *lun_of(CONTENT)) as found:
        yield found


def test_events_name_the_connections(served: Served) -> None:
    served.events.unlink(missing_ok=True)
    with served.open() as source:
        source.read(0, memoryview(bytearray(1 << 20)))
    events = [json.loads(line) for line in served.events.read_text().splitlines()]
    attempts = [event for event in events if event["kind"] == "attempt"]
    assert [(e["step"], e["target"], e["remote"]) for e in attempts] == [("20a", "san", ["127.0.0.1", served.port])] * 2
    assert len({e["local"][1] for e in attempts}) == 2 and all("after the SYN" in e["written"] for e in attempts)
    assert [e["outcome"] for e in events if e["kind"] == "outcome"] == ["open", "open"]
    totals = {e["attempt"]: e["received"] for e in events if e["kind"] == "bytes"}
    assert totals[attempts[1]["attempt"]] > 400_000 > totals[attempts[0]["attempt"]]


@pytest.mark.parametrize("login", [Login(LOGIN.initiator, "proxy", "not-the-secret"), Login(LOGIN.initiator)])
def test_chap(served: Served, login: Login) -> None:
    with pytest.raises(SanCredentials) as caught:
        served.open(login)
    fields = caught.value.to_dict()
    assert (fields["code"], fields["step"], fields["target"], fields["port"]) == ("san.chap", "20a", "san", served.port)
    assert "not-the-secret" not in str(caught.value) + repr(login)


def test_another_lun(served: Served) -> None:
    with pytest.raises(SanNotVisible, match=f"naa.{NAA}"):
        served.open(layout=Layout("6" + "0" * 31, SIZE, ()))


def test_vcenter_and_layout_disagree(served: Served) -> None:
    portals = san.Portals((("san", served.port),), LOGIN)
    with pytest.raises(SanUnsupported, match="names"):
        san.open_source(served.dialer(), portals, served.layout, ["naa.6000"])


def test_a_map_that_goes_behind_the_lun(served: Served) -> None:
    with pytest.raises(SanUnsupported, match="the LUN has"):
        served.open(layout=Layout(NAA, SIZE, ((0, 65536, 1 << 40),)))


def test_logins_refused(own: Served) -> None:
    own.manage("login.refuse", on=True)
    with pytest.raises((SanLoginRefused, SanNotVisible)):  # who may not log in is not shown the target either
        own.open()


def test_nobody_listens_or_everything_is_dropped(served: Served) -> None:
    dialer = served.dialer()
    with pytest.raises(ConnectRefused) as caught:
        san.open_source(dialer, san.Portals((("127.0.0.1", 1),), LOGIN), served.layout, [])
    assert caught.value.step == "20a"
    with socket.socket() as full:  # a listener whose queue is full drops SYNs, as a firewall does
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        clients = [socket.socket() for _ in range(4)]
        try:
            for client in clients:
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
            dialer.timeout = 0.5
            with pytest.raises(ConnectTimedOut):
                san.open_source(dialer, san.Portals((("127.0.0.1", port),), LOGIN), served.layout, [])
        finally:
            for client in clients:
                client.close()


def test_something_else_answers(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + bytes(100))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(VadplabError) as caught:
            portals = san.Portals((("127.0.0.1", listener.getsockname()[1]),), LOGIN)
            san.open_source(served.dialer(), portals, served.layout, [], patience=3)
        assert caught.value.code in ("san.cut", "san.login", "san.silent")
        thread.join(5)


def test_a_second_portal_is_tried(served: Served) -> None:
    portals = san.Portals((("127.0.0.1", 1), ("san", served.port)), LOGIN)
    with san.open_source(served.dialer(), portals, served.layout, []) as source:
        assert source.capacity == SIZE


def test_a_san_that_hangs(own: Served) -> None:
    with own.open(patience=1.0) as source:
        suspend(own.daemon())
        try:
            with pytest.raises(SanSilent) as caught:
                source.read(0, memoryview(bytearray(1 << 20)))
            assert caught.value.step == "20a"
            with pytest.raises(SanSilent):
                source.read(0, memoryview(bytearray(512)))
        finally:
            os.kill(own.daemon(), signal.SIGCONT)


def test_a_san_that_dies(own: Served) -> None:
    with own.open() as source:
        os.kill(own.daemon(), signal.SIGKILL)
        with pytest.raises(SanCut):
            source.read(0, memoryview(bytearray(1 << 20)))


def test_a_lun_that_is_taken_away(own: Served) -> None:
    with own.open() as source:
        own.manage("lun.offline", on=True)
        with pytest.raises((SanReadFailed, SanCut)):
            source.read(0, memoryview(bytearray(1 << 20)))


# Parsers


def document(**changes: Any) -> dict[str, Any]:
    return {
        "schema": layouts.SCHEMA,
        "lun": {"naa": f"naa.{NAA}", "size": 1 << 20},
        "size": 262144,
        "extents": [[0, 65536, 131072], [65536, 65536, 0]],
        **changes,
    }


def test_a_map() -> None:
    found = layouts.parse(document())
    assert found == Layout(NAA, 262144, ((0, 65536, 131072), (65536, 65536, 0)))
    assert found.extents() == [(0, 131072)]
    assert list(found.pieces(65024, 1024)) == [(65024, 512, 131072 + 65024), (65536, 512, 0)]


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "other"},
        {"extents": [[0, 65536]]},
        {"extents": [[0, 100, 0]]},
        {"extents": [[0, 65536, -512]]},
        {"extents": [[0, 65536, 0.0]]},
        {"extents": [[0, 0, 0]]},
        {"extents": [[65536, 65536, 0], [0, 65536, 0]]},
        {"extents": [[0, 524288, 0]]},
        {"extents": [[0, 65536, 1 << 20]]},
        {"extents": None},
        {"lun": {}},
    ],
)
def test_a_map_that_is_not_one(changes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        layouts.parse(document(**changes))


@given(st.data())
def test_pieces_cover_exactly_what_is_asked_for(data: st.DataObject) -> None:
    sectors = 64
    held = sorted(data.draw(st.sets(st.integers(0, sectors - 1))))
    areas = tuple((s * 512, 512, data.draw(st.integers(0, 1000)) * 512) for s in held)
    offset = data.draw(st.integers(0, sectors - 1))
    length = data.draw(st.integers(1, sectors - offset))
    found = list(Layout(NAA, sectors * 512, areas).pieces(offset * 512, length * 512))
    assert [at // 512 for at, _, _ in found] == [s for s in held if offset <= s < offset + length]
    assert [where for _, _, where in found] == [a[2] for a in areas if offset * 512 <= a[0] < (offset + length) * 512]


@given(st.binary(max_size=300))
def test_answers_of_noise(data: bytes) -> None:
    for parse in (scsi.luns, scsi.capacity, scsi.identities):
        try:
            parse(data)
        except SanProtocol:
            pass


def test_identities() -> None:
    def designator(code_set: int, kind: int, value: bytes) -> bytes:
        return bytes([code_set, kind, 0, len(value)]) + value

    parts = (
        designator(1, 3, bytes.fromhex(NAA)) + designator(2, 1, b"VENDOR  x") + designator(3, 8, b"naa.6" + b"a" * 31)
    )
    page = bytes([0, 0x83]) + len(parts).to_bytes(2, "big") + parts
    assert scsi.identities(page) == {NAA, "6" + "a" * 31}
    assert scsi.luns((16).to_bytes(4, "big") + bytes(4) + bytes(8) + b"\x41\x02" + bytes(6)) == [0, 258]
