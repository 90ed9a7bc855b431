# SPDX-License-Identifier: MIT
"""The data link: frames, noise, silence, trickles, errors that cross."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.dialer import Connection, Dialer
from engine.errors import RemoteError, VadplabError
from engine.events import EventLog
from engine.modes.nfc.errors import ReadFailed
from engine.mover import datalink
from engine.mover.datalink import DataLink, DataListener, Frame, parse
from engine.mover.errors import DataLinkCut, DataLinkSilent, DataProtocol, NoFreePort, Stopped
from engine.mover.source_pipeline import SourcePipeline, pieces
from engine.mover.target_pipeline import TargetPipeline
from engine.mover.throttle import Throttle
from engine.store.clusters import CLUSTER, ZERO_DIGEST
from engine.store.errors import StoreFull
from engine.store.qcow2.reader import Qcow2Reader
from engine.store.verify import verify_disk
from tests.engine.modes.esxi import sample
from tests.engine.modes.memory_source import MemorySource
from tests.engine.pki import Pki
from tests.engine.store.disks import allocated

FIELDS = st.dictionaries(
    st.text(max_size=8), st.one_of(st.integers(0, 1 << 40), st.text(max_size=20), st.binary(max_size=40)), max_size=5
)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def dial(port: int) -> Connection:
    return Dialer(EventLog(None, host="proxy-1", process="test")).connect(
        "127.0.0.1", port, step="7", name="repository-1"
    )


@contextlib.contextmanager
def links(pki: Pki, *, silence: float = 5.0) -> Iterator[tuple[DataLink, DataLink]]:
    """(proxy's end, repository's end), opened by the proxy."""
    listener = DataListener("127.0.0.1", (0, 0), pki.identity("repository-1"))
    found: list[Any] = []

    def accept() -> None:
        found.append(
            listener.accept(deadline=10, stop=threading.Event(), step="7", welcome={"size": 7}, silence=silence)
        )

    thread = threading.Thread(target=accept)
    thread.start()
    mine, welcome = datalink.connect(
        dial(listener.port),
        pki.identity("proxy-1"),
        expect="repository-1",
        token=listener.token,
        step="7",
        silence=silence,
    )
    thread.join(10)
    (theirs, hello) = found[0]
    assert welcome == {"size": 7} and hello["attempt"] == mine.route.attempt == theirs.route.attempt
    with mine, theirs:
        yield mine, theirs


def body(kind: Any, fields: Any, payload: bytes, *, length: int | None = None) -> memoryview:
    head = b"\x93" + msgpack.packb(kind) + msgpack.packb(fields) + b"\xc6"
    return memoryview(head + struct.pack(">I", len(payload) if length is None else length) + payload)


@given(st.text(max_size=10), FIELDS, st.binary(max_size=100))
def test_parse_gives_back_what_was_packed(kind: str, fields: dict[str, Any], payload: bytes) -> None:
    assert parse(body(kind, fields, payload)) == Frame(kind, fields, memoryview(payload))


@given(st.binary(max_size=200))
def test_parse_against_noise(data: bytes) -> None:
    with contextlib.suppress(DataProtocol):
        parse(memoryview(data))


@given(FIELDS, st.binary(max_size=50), st.integers(0, 300), st.integers(0, 255))
def test_parse_against_a_changed_byte(fields: dict[str, Any], payload: bytes, at: int, value: int) -> None:
    data = bytearray(body("data", fields, payload))
    data[at % len(data)] = value
    with contextlib.suppress(DataProtocol):
        frame = parse(memoryview(data))
        assert isinstance(frame.kind, str) and isinstance(frame.fields, dict)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        msgpack.packb(["data", {}]),
        msgpack.packb([1, {}, b""]),
        bytes(body("data", [], b"x")),
        bytes(body("data", {}, b"xx", length=1)),
        bytes(body("data", {}, b"xx", length=3)),
        bytes(body("data", {"a": "b" * 9000}, b"")),
    ],
)
def test_frames_that_are_refused(data: bytes) -> None:
    with pytest.raises(DataProtocol):
        parse(memoryview(data))


def test_frames_travel_both_ways(pki: Pki) -> None:
    with links(pki) as (mine, theirs):
        big = bytes(range(256)) * 4096
        sent = mine.send("data", {"first": 3}, [big[:1000], memoryview(big)[1000:]], len(big))
        frame = theirs.receive()
        assert (frame.kind, frame.fields) == ("data", {"first": 3})
        assert frame.payload == big and sent > len(big)
        theirs.send("received", {"clusters": 1})
        assert mine.receive().fields == {"clusters": 1}
        assert mine.sent == theirs.received
        with pytest.raises(DataProtocol, match="too long"):
            mine.send("data", {}, [bytes(5 << 20)], 5 << 20)


def test_silence_has_a_deadline(pki: Pki) -> None:
    with links(pki, silence=0.4) as (mine, _):
        start = time.monotonic()
        with pytest.raises(DataLinkSilent) as caught:
            mine.receive()
        assert 0.3 < time.monotonic() - start < 20
        fields = caught.value.to_dict()
        assert (fields["step"], fields["host"], fields["target"]) == ("7", "proxy-1", "repository-1")


def test_a_peer_that_takes_nothing_has_a_deadline(pki: Pki) -> None:
    with links(pki, silence=0.4) as (mine, _):
        start = time.monotonic()
        with pytest.raises(DataLinkSilent, match="took nothing"):
            while time.monotonic() - start < 20:
                mine.send("data", {}, [bytes(1 << 20)], 1 << 20)


def test_all_senders_fail_together(pki: Pki) -> None:
    with links(pki, silence=2.0) as (mine, _):
        failures: list[BaseException] = []

        def work() -> None:
            try:
                while True:
                    mine.send("data", {}, [bytes(1 << 20)], 1 << 20)
            except VadplabError as exc:
                failures.append(exc)

        threads = [threading.Thread(target=work) for _ in range(8)]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert time.monotonic() - start < 14, "one silence, not eight"
        assert [type(failure) for failure in failures] == [DataLinkSilent] * 8


def test_a_frame_that_trickles_has_a_deadline(pki: Pki) -> None:
    with links(pki, silence=0.5) as (mine, theirs):
        done = threading.Event()

        def trickle() -> None:
            with contextlib.suppress(OSError, ValueError):
                mine._sock.sendall(struct.pack(">I", 1000))
                while not done.wait(0.05):
                    mine._sock.sendall(b"x")

        thread = threading.Thread(target=trickle)
        thread.start()
        start = time.monotonic()
        with pytest.raises(DataLinkSilent):
            theirs.receive()
        assert time.monotonic() - start < 20
        done.set()
        thread.join(5)


def test_ticks_keep_a_quiet_link_alive(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datalink, "TICK", 0.1)
    with links(pki, silence=0.6) as (mine, theirs):
        mine.start_ticks()
        heard = []
        thread = threading.Thread(target=lambda: heard.append(theirs.receive().kind))
        thread.start()
        thread.join(1.5)
        assert thread.is_alive(), "it waits and does not count the peer as gone"
        mine.stop_ticks()
        mine.send("end")
        thread.join(5)
        # every tick restarts the deadline of a receive, and none of them is handed out
        assert heard == ["end"]


def test_an_error_reaches_the_sender(pki: Pki) -> None:
    with links(pki) as (mine, theirs):
        mine.heed()
        theirs.fail(StoreFull("disk-2000.qcow2: No space left on device"))
        end = time.monotonic() + 5
        with pytest.raises(RemoteError) as caught:
            while time.monotonic() < end:
                mine.heed()
        assert caught.value.to_dict()["code"] == "store.full"


def test_a_closed_peer_is_noticed_by_heed(pki: Pki) -> None:
    with links(pki) as (mine, theirs):
        theirs.close()
        end = time.monotonic() + 5
        with pytest.raises(DataLinkCut):
            while time.monotonic() < end:
                mine.heed()


def test_strangers_do_not_disturb_the_listener(pki: Pki, tmp_path: Path) -> None:
    listener = DataListener("127.0.0.1", (0, 0), pki.identity("repository-1"))
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(listener.accept(deadline=20, stop=threading.Event(), step="7", welcome={}))
    )
    thread.start()
    with socket.create_connection(("127.0.0.1", listener.port)) as plain:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
    socket.create_connection(("127.0.0.1", listener.port)).close()
    (tmp_path / "other").mkdir()
    stranger = Pki(tmp_path / "other").identity("proxy-1")
    for identity, token in ((stranger, listener.token), (pki.identity("proxy-1"), "x")):
        with pytest.raises(VadplabError):
            datalink.connect(dial(listener.port), identity, expect="repository-1", token=token, step="7")
    link, _ = datalink.connect(
        dial(listener.port), pki.identity("proxy-1"), expect="repository-1", token=listener.token, step="7"
    )
    thread.join(10)
    link.close()
    found[0][0].close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", listener.port)).close()


def test_the_wait_for_a_link_ends(pki: Pki) -> None:
    listener = DataListener("127.0.0.1", (0, 0), pki.identity("repository-1"))
    with pytest.raises(DataLinkSilent, match="nobody connected"):
        listener.accept(deadline=0.1, stop=threading.Event(), step="7", welcome={})
    listener, stop = DataListener("127.0.0.1", (0, 0), pki.identity("repository-1")), threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        listener.accept(deadline=10, stop=stop, step="7", welcome={})


def test_ports_come_from_the_range(pki: Pki) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NoFreePort, match=str(port)):
            DataListener("127.0.0.1", (port, port), pki.identity("repository-1"))


def test_throttle_holds_the_rate() -> None:
    throttle, stop = Throttle(1_000_000), threading.Event()
    start = time.monotonic()
    for _ in range(10):
        throttle.take(100_000, stop)
    assert 0.6 < time.monotonic() - start < 20
    throttle.set_rate(None)
    start = time.monotonic()
    throttle.take(10**9, stop)  # would take a quarter of an hour
    assert time.monotonic() - start < 20


def test_throttle_does_not_outlive_a_stop() -> None:
    throttle, stop = Throttle(10), threading.Event()
    throttle.take(1000, stop)
    stop.set()
    start = time.monotonic()
    throttle.take(1000, stop)
    assert time.monotonic() - start < 20


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 100)), max_size=10),
    st.integers(1, 500),
)
def test_pieces_cover_each_cluster_once(areas: list[tuple[int, int]], sectors: int) -> None:
    unit = CLUSTER // 4
    capacity, piece = sectors * unit, 4 * CLUSTER
    extents, last = [], 0
    for gap, length in areas:
        begin = last + gap
        if begin + length > sectors:
            break
        extents.append((begin * unit, length * unit))
        last = begin + length
    covered = bytearray(capacity)
    for offset, length in pieces(extents, capacity, piece):
        assert offset % CLUSTER == 0 and 0 < length <= piece and offset + length <= capacity
        assert length % CLUSTER == 0 or offset + length == capacity
        assert not any(covered[offset : offset + length])
        covered[offset : offset + length] = b"\1" * length
    for offset, length in extents:
        assert all(covered[offset : offset + length])


def backup(pki: Pki, folder: Path, source: MemorySource, **options: Any) -> tuple[dict[str, Any], TargetPipeline]:
    with links(pki) as (mine, theirs):
        target = TargetPipeline(folder, "disk-2000.qcow2", source.capacity, lambda: theirs)
        pipeline = SourcePipeline(source, mine, throttle=Throttle(None), **options)
        try:
            return pipeline.run(), target
        finally:
            target.wait(10)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("known", [False, True])
def test_pipelines(pki: Pki, tmp_path: Path, workers: int, known: bool) -> None:
    content = sample(9 << 20) + bytes(3 << 20)
    source = MemorySource(content, extents_known=known)
    counts, target = backup(pki, tmp_path, source, workers=workers)
    stored = target.commit(10)
    assert stored.root == counts["root"] and stored.held == counts["clusters"]
    assert counts["read"] == counts["zero"] + counts["data"]
    assert counts["read"] < len(content) if known else counts["read"] == len(content)
    assert verify_disk(tmp_path / stored.file, target.disk.digests).intact
    with Qcow2Reader(tmp_path / stored.file) as reader:
        assert len(allocated(reader)) == stored.held
    assert target.disk.digests.get(stored.size // 65536 - 1) == ZERO_DIGEST


def test_a_source_that_fails_is_named_on_both_sides(pki: Pki, tmp_path: Path) -> None:
    folder = tmp_path / "point"
    folder.mkdir()
    with pytest.raises(ReadFailed, match="made to fail"):
        backup(pki, folder, MemorySource(sample(9 << 20), fail_at=5 << 20))
    assert list(folder.iterdir()) == [], "what was received is removed"


def test_the_target_tells_the_source_why_it_gave_up(pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.store import durable

    def full(fd: int, data: bytes | memoryview, offset: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write_at", full)
    with pytest.raises(RemoteError) as caught:
        backup(pki, tmp_path, MemorySource(bytes(range(1, 256)) * (1 << 17) + sample(40 << 20)))
    assert caught.value.to_dict()["code"] == "store.full"
