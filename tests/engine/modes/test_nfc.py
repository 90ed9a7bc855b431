# SPDX-License-Identifier: MIT
"""The NFC client against the fake host and against sockets that answer wrongly: one error class for each symptom."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.dialer import Connection, Dialer
from engine.errors import ConnectRefused, VadplabError
from engine.events import EventLog
from engine.modes.network import NetworkSession
from engine.modes.nfc import aio, authd
from engine.modes.nfc.client import NfcClient
from engine.modes.nfc.errors import (
    HostBusy,
    NfcCut,
    NfcProtocol,
    NfcSilent,
    NoGreeting,
    NotAuthd,
    OpenFailed,
    ServiceRefused,
    TicketCertificate,
    TicketRefused,
)
from engine.modes.nfc.stream import RawStream
from engine.modes.ticket import Ticket
from tests.engine.modes.esxi import host, impostor, sample, ticket

SIZE = 2 << 20


@pytest.fixture(scope="module")
def esxi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    image = tmp_path_factory.mktemp("esxi") / "disk.raw"
    image.write_bytes(sample(SIZE))
    with host(image) as announcement:
        yield announcement


def dialer(path: Path | None = None) -> Dialer:
    return Dialer(EventLog(path, host="proxy-1", process="test"))


def connect(esxi: dict[str, Any], mode: Any = "nbd", **changes: Any) -> NetworkSession:
    return NetworkSession.connect(dialer(), ticket(esxi, **changes), mode, name="esxi-1")


@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
def test_config_then_disk_on_one_connection(esxi: dict[str, Any], mode: Any, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    session = NetworkSession.connect(dialer(events), ticket(esxi), mode, name="esxi-1")
    assert 'displayName = "vm1"' in session.read_config(esxi["vmx"])
    with session.open_disk(esxi["path"], SIZE) as source:
        buffer = bytearray(SIZE)
        source.read(0, memoryview(buffer))
    assert buffer == sample(SIZE)
    found = [json.loads(line) for line in events.read_text().splitlines()]
    kinds = [(event["kind"], event["step"]) for event in found]
    assert kinds == [("attempt", "19"), ("outcome", "19"), ("use", "20c"), ("bytes", "20c")]
    assert len({event["attempt"] for event in found}) == 1
    assert found[-1]["received"] > SIZE


def test_older_service_name(esxi: dict[str, Any]) -> None:
    with contextlib.closing(connect(esxi, service="nfc")) as session:
        assert session.client.version == 11


@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
def test_a_ticket_works_once(esxi: dict[str, Any], mode: Any) -> None:
    first = ticket(esxi)
    NetworkSession.connect(dialer(), first, mode).close()
    with pytest.raises(TicketRefused) as caught:
        NetworkSession.connect(dialer(), first, mode, name="esxi-1")
    fields = caught.value.to_dict()
    assert (fields["code"], fields["step"], fields["host"], fields["target"]) == (
        "nfc.ticket",
        "19",
        "proxy-1",
        "esxi-1",
    )
    assert fields["port"] == esxi["port"]
    assert first.session not in str(caught.value) + repr(first)


def test_wrong_thumbprint(esxi: dict[str, Any]) -> None:
    with pytest.raises(TicketCertificate, match="not the one in the ticket"):
        connect(esxi, thumbprint="00:" * 19 + "00")


def test_unknown_service(esxi: dict[str, Any]) -> None:
    with pytest.raises(ServiceRefused, match="554"):
        connect(esxi, service="vpxa-other")


def test_path_outside_the_vm(esxi: dict[str, Any]) -> None:
    with contextlib.closing(connect(esxi)) as session:
        with pytest.raises(OpenFailed) as caught:
            session.open_disk("[datastore1] other/other.vmdk", SIZE)
        assert caught.value.step == "20c"
        # the connection is still good
        assert session.open_disk(esxi["path"], SIZE).capacity == SIZE


def test_capacity_that_vcenter_does_not_know(esxi: dict[str, Any]) -> None:
    with contextlib.closing(connect(esxi)) as session:
        with pytest.raises(OpenFailed, match="another capacity"):
            session.open_disk(esxi["path"], SIZE * 2)


def test_host_limit(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(sample(SIZE))
    with host(image, "--max-connections", "1") as announcement:
        with contextlib.closing(connect(announcement)):
            with pytest.raises(HostBusy):
                connect(announcement)


def reach(port: int, **changes: Any) -> NetworkSession:
    fields = {"host": "127.0.0.1", "port": port, "thumbprint": "", "service": "vpxa-nfc", "session": "s", **changes}
    return NetworkSession.connect(dialer(), Ticket(**fields), "nbd", name="esxi-1")


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectRefused) as caught:
        reach(port)
    assert (caught.value.step, caught.value.target) == ("19", "esxi-1")


def test_silence_instead_of_a_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authd, "GREETING_PATIENCE", 0.3)
    with impostor(lambda sock: sock.recv(1) and None) as port:
        with pytest.raises(NoGreeting, match="nothing came"):
            reach(port)


def test_closed_instead_of_a_greeting() -> None:
    with impostor(lambda sock: None) as port:
        with pytest.raises(NoGreeting, match="it was closed"):
            reach(port)


@pytest.mark.parametrize(
    "line",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"220 VMware Authentication Daemon Version 1.10: ServerDaemonProtocol:SOAP\r\n",
        b"220 VMware Authentication Daemon\r\n",
    ],
)
def test_another_greeting(line: bytes) -> None:
    with impostor(lambda sock: sock.sendall(line)) as port:
        with pytest.raises(NotAuthd):
            reach(port)


def test_a_line_that_does_not_end() -> None:
    with impostor(lambda sock: sock.sendall(b"2" * 5000)) as port:
        with pytest.raises(NfcProtocol):
            reach(port)


def test_no_tls_after_the_greeting() -> None:
    def behave(sock: socket.socket) -> None:
        sock.sendall(b"220 VMware Authentication Daemon Version 1.10: SSL Required, x\r\n")
        sock.recv(4096)
        sock.sendall(b"500 what?\r\n")

    with impostor(behave) as port:
        with pytest.raises(VadplabError) as caught:
            reach(port)
    assert caught.value.code in ("nfc.protocol", "tls.failed")


@contextlib.contextmanager
def relay(esxi: dict[str, Any], limit: int, then: Callable[[socket.socket], None]) -> Iterator[int]:
    """A middlebox: passes `limit` bytes of the host's answers, then does something to the client's connection."""

    def behave(client: socket.socket) -> None:
        with socket.create_connection((esxi["address"], esxi["port"])) as server:

            def up() -> None:
                with contextlib.suppress(OSError):
                    while data := client.recv(65536):
                        server.sendall(data)

            threading.Thread(target=up, daemon=True).start()
            left = limit
            while left > 0 and (data := server.recv(min(left, 65536))):
                client.sendall(data)
                left -= len(data)
            then(client)

    with impostor(behave) as port:
        yield port


@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
def test_cut_while_reading(esxi: dict[str, Any], mode: Any) -> None:
    with relay(esxi, 300_000, lambda sock: None) as port:
        session = NetworkSession.connect(dialer(), ticket(esxi, port=port), mode, name="esxi-1")
        source = session.open_disk(esxi["path"], SIZE)
        reads = [source.start(0, memoryview(bytearray(1 << 20))), source.start(1 << 20, memoryview(bytearray(1 << 20)))]
        for read in reads:
            with pytest.raises(NfcCut) as caught:
                read.wait()
            assert caught.value.step == "20c"
        with pytest.raises(NfcCut):
            source.read(0, memoryview(bytearray(512)))
        source.close()


def test_silent_while_reading(esxi: dict[str, Any]) -> None:
    held = threading.Event()
    with relay(esxi, 300_000, lambda sock: held.wait(10) and None) as port:
        session = NetworkSession.connect(dialer(), ticket(esxi, port=port), "nbd", name="esxi-1")
        source = session.open_disk(esxi["path"], SIZE)
        session.client.raw.patience = 0.4
        start = time.monotonic()
        with pytest.raises(NfcSilent) as caught:
            source.read(0, memoryview(bytearray(1 << 20)))
        assert time.monotonic() - start < 9, "the host is silent for 10 s"
        assert caught.value.code == "nfc.silent"
        source.close()
        held.set()


def test_close_ends_a_waiting_read(esxi: dict[str, Any]) -> None:
    held = threading.Event()
    with relay(esxi, 300_000, lambda sock: held.wait(10) and None) as port:
        session = NetworkSession.connect(dialer(), ticket(esxi, port=port), "nbd")
        source = session.open_disk(esxi["path"], SIZE)
        failures: list[BaseException] = []

        def read() -> None:
            try:
                source.read(0, memoryview(bytearray(1 << 20)))
            except VadplabError as exc:
                failures.append(exc)

        thread = threading.Thread(target=read)
        thread.start()
        source.close()
        thread.join(5)
        held.set()
        assert not thread.is_alive()
        assert [type(failure) for failure in failures] == [NfcCut]


class _Scripted:
    """A stream that gives prepared bytes and takes everything."""

    def __init__(self, answer: bytes) -> None:
        self._answer = memoryview(answer)

    def send(self, data: bytes) -> None:
        pass

    def read_into(self, view: memoryview) -> None:
        if len(self._answer) < len(view):
            raise NfcCut("cut")
        view[:] = self._answer[: len(view)]
        self._answer = self._answer[len(view) :]


def scripted(answer: bytes) -> NfcClient:
    left, right = socket.socketpair()
    right.close()
    raw = RawStream(left, host="proxy-1", target="esxi-1", port=902, step="20c")
    client = NfcClient(raw, "a", EventLog(None, host="proxy-1", process="test"))
    client._stream = _Scripted(answer)
    return client


def fragment(op: int, at: int, data: bytes, *, request: int, offset: int = 0) -> bytes:
    return aio.frame(aio.Type.IO, op, aio.IO_REPLY.pack(0, 1, 0, offset, request, at, len(data), len(data), 0), data)


def test_fragments_in_any_order_and_interleaved() -> None:
    answer = (
        fragment(1, 512, b"d" * 512, request=1024, offset=4096)
        + fragment(0, 512, b"b" * 512, request=1024)
        + fragment(1, 0, b"c" * 512, request=1024, offset=4096)
        + fragment(0, 0, b"a" * 512, request=1024)
    )
    client = scripted(answer)
    first, second = bytearray(1024), bytearray(1024)
    reads = [client.start_read(9, 0, memoryview(first)), client.start_read(9, 4096, memoryview(second))]
    for read in reads:
        read.wait()
    assert first == b"a" * 512 + b"b" * 512
    assert second == b"c" * 512 + b"d" * 512


@pytest.mark.parametrize(
    "answer",
    [
        fragment(0, 0, b"a" * 512, request=1024) * 2,
        fragment(0, 0, b"a" * 1024, request=1024, offset=512),
        fragment(0, 512, b"a" * 1024, request=1024),
        fragment(5, 0, b"a" * 1024, request=1024),
        fragment(0, 0, b"a" * 512, request=1024) + fragment(0, 256, b"a" * 768, request=1024),
        aio.frame(aio.Type.OPEN_FILE, 0, bytes(60)),
        b"\0" * 16,
    ],
)
def test_answers_that_make_no_sense(answer: bytes) -> None:
    client = scripted(answer)
    with pytest.raises(NfcProtocol) as caught:
        client.start_read(9, 0, memoryview(bytearray(1024))).wait()
    assert caught.value.target == "esxi-1"


def test_an_error_frame_fails_only_its_read() -> None:
    error = aio.frame(aio.Type.ERROR, 0, b"\x07\0\0\0datastore\nis gone\0")
    client = scripted(error + fragment(1, 0, b"x" * 512, request=512))
    buffer = bytearray(512)
    bad, good = client.start_read(9, 0, memoryview(bytearray(512))), client.start_read(9, 0, memoryview(buffer))
    with pytest.raises(VadplabError, match=r"datastore is gone \(NFC code 7\)") as caught:
        bad.wait()
    assert caught.value.code == "nfc.read"
    good.wait()
    assert buffer == b"x" * 512


def test_dialed_socket_is_closed_on_failure(esxi: dict[str, Any]) -> None:
    connection: Connection = dialer().connect(esxi["address"], esxi["port"], step="19")
    with pytest.raises(TicketRefused):
        NfcClient.open(
            connection,
            ticket(esxi, session="0000"),
            ssl=False,
            events=EventLog(None, host="proxy-1", process="test"),
            step="19",
        )
    assert connection.sock.fileno() == -1
