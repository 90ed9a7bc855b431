# SPDX-License-Identifier: MIT
"""The text dialogue of 902 and everything that it refuses."""

from __future__ import annotations

import re
import socket
import time

import pytest

from fakes.core.fabric import FabricClient, FabricError
from fakes.esxi.connection import Limits
from tests.fakes.esxi.conftest import Host
from tests.fakes.esxi.nfc_client import Authd, Nfc, session


@pytest.fixture
def authd(esxi: Host) -> Authd:
    return Authd(esxi.address)


def test_greeting_and_certificate(esxi: Host, authd: Authd) -> None:
    assert re.match(r"220 VMware Authentication Daemon Version (\d\S*): SSL Required", authd.greeting)
    assert authd.greeting.endswith("MKSDisplayProtocol:VNC , VMXARGS supported, NFCSSL supported/t, SHA256 supported")
    assert authd.thumbprint == esxi.host.sha1
    assert authd.ask("BANNER ").startswith("220 VMware Authentication Daemon Version 1.10: ")
    assert authd.ask("THUMBPRINT_SHA2 PlainText") == f"200 {esxi.host.sha256}"
    assert authd.ask("THUMBPRINT_SHA2 AA:BB:CC") == "501 Invalid arguments"
    assert authd.ask("THUMBPRINT_SHA2 one two") == "501 Invalid arguments"
    assert authd.ask("QUIT").startswith("221 ")
    with pytest.raises(EOFError):
        authd.stream.read(1)
    authd.close()


def test_session_gets_no_reply(esxi: Host, authd: Authd) -> None:
    authd.tell("SESSION whatever")
    assert authd.ask("QUIT").startswith("221 ")  # the first line that comes back belongs to QUIT
    authd.close()


def test_lines_may_come_in_one_record(esxi: Host, authd: Authd) -> None:
    authd.stream.send(f"SESSION {esxi.ticket()}\r\nBANNER \r\nTHUMBPRINT_SHA2 PlainText\r\nPROXY nfc\r\n".encode())
    assert [authd.stream.line()[:3] for _ in range(3)] == ["220", "200", "200"]
    authd.close()


def test_clear_bytes_sent_right_behind_proxy_are_nfc(esxi: Host, authd: Authd) -> None:
    """A client may not wait: what follows the TLS record of PROXY on the wire is already clear NFC."""
    authd.tell(f"SESSION {esxi.ticket()}")
    tls = authd.stream._tls
    assert tls is not None
    tls.write(b"PROXY nfc\r\n")
    handshake = b"".join(kind.to_bytes(4, "little").ljust(264, b"\0") for kind in (43, 33, 51))
    authd.stream.sock.sendall(authd.stream._out.read() + handshake)
    assert authd.stream.line() == "200 Connect ha-nfc"
    authd.stream.leave_tls()
    assert [authd.stream.read(264)[0] for _ in range(2)] == [36, 51]
    authd.close()


def test_accounts(esxi: Host, authd: Authd) -> None:
    assert authd.ask("PASS early") == "503 Login with USER first"
    assert authd.ask("PROXY nfc") == "530 Please login with USER and PASS"
    assert authd.ask("USER administrator@vsphere.local") == "331 Password required for administrator@vsphere.local."
    assert authd.ask("PASS VMware1!") == "530 Login incorrect"
    assert authd.ask("USER root") == "331 Password required for root."
    assert authd.ask("PASS host-secret") == "230 User root logged in."
    assert authd.ask("PROXY nfc").startswith("513 ")  # NFC needs a ticket even then
    assert authd.ask("HELP").startswith("500 ")
    assert authd.ask("").startswith("502 ")
    authd.close()
    assert "host-secret" not in esxi.journal_path.read_text()


def test_tickets_are_single_use(esxi: Host) -> None:
    ticket = esxi.ticket()
    with session(esxi.address, ticket) as nfc:
        nfc.close()
    authd = Authd(esxi.address)
    authd.tell(f"SESSION {ticket}")
    assert authd.ask("PROXY vpxa-nfc").startswith("513 ")
    authd.tell("SESSION 00000000-0000-0000-0000-000000000000")
    assert authd.ask("PROXY vpxa-nfc").startswith("513 ")
    expired = esxi.ticket(ttl=0.01)
    time.sleep(0.05)  # the ticket's life, not a wait for readiness
    authd.tell(f"SESSION {expired}")
    assert authd.ask("PROXY vpxa-nfc").startswith("513 ")
    good = esxi.ticket()
    authd.tell(f"SESSION {good}")
    assert authd.ask("PROXY vpxa-vnc").startswith("554 ")  # and the ticket is still good
    assert authd.ask("PROXY vpxa-nfc") == "200 Connect ha-nfc"
    assert Nfc(authd.stream, ssl_again=False).version == 11
    authd.close()
    refused = [(e["code"], e["reason"]) for e in esxi.journal("refused")]
    assert refused == [
        (513, "ticket-used"),
        (513, "ticket-unknown"),
        (513, "ticket-expired"),
        (554, "service"),
    ]
    text = esxi.journal_path.read_text()
    assert all(secret not in text for secret in (ticket, expired, good))


def test_a_refused_ticket_never_reaches_nfc(esxi: Host, authd: Authd) -> None:
    authd.tell("SESSION nothing")
    assert authd.ask("PROXY nfc").startswith("513 ")
    authd.stream.leave_tls()
    authd.stream.send((33).to_bytes(4, "little").ljust(264, b"\0"))
    with pytest.raises((EOFError, AssertionError)):
        kind = authd.stream.read(264)[0]
        assert kind != 36, "NFC answered without a ticket"
        raise AssertionError
    authd.close()
    assert not esxi.journal("proxy")


def test_a_command_before_tls_closes_the_connection(esxi: Host) -> None:
    with socket.create_connection(esxi.address, timeout=5) as sock:
        assert sock.recv(4096).startswith(b"220 ")
        sock.sendall(b"USER root\r\n")
        assert sock.recv(4096) == b""
    assert esxi.journal("refused")[0]["reason"] == "command before TLS"


class TestLimits:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(authd=0.4, idle=0.4, connections=1, nfc_version=9)

    def test_connections(self, esxi: Host) -> None:
        waiting = esxi.ticket()
        with session(esxi.address, esxi.ticket()) as nfc:
            assert nfc.version == 9
            authd = Authd(esxi.address)
            authd.tell(f"SESSION {waiting}")
            assert authd.ask("PROXY nfc").startswith("514 ")
            authd.close()
            nfc.close()
        deadline = time.monotonic() + 5
        while len(esxi.journal("close")) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        with session(esxi.address, waiting) as nfc:  # the refusal did not use it up
            nfc.close()

    @pytest.mark.parametrize("stage", ["greeting", "hello", "tls", "nfc", "nfcssl"])
    def test_idle_clients_are_let_go(self, esxi: Host, stage: str) -> None:
        if stage in ("greeting", "hello"):
            sock = socket.create_connection(esxi.address, timeout=5)
            if stage == "hello":
                sock.sendall(b"\x16\x03\x01\x02\x00")
        else:
            authd = Authd(esxi.address)
            sock = authd.stream.sock
            if stage.startswith("nfc"):
                authd.tell(f"SESSION {esxi.ticket()}")
                assert authd.ask(f"PROXY {stage}").startswith("200 ")
        began = time.monotonic()
        while sock.recv(4096):
            pass
        assert time.monotonic() - began < 20
        sock.close()
        assert "timed out" in esxi.journal("close")[-1]["reason"]


def test_fabric_messages(esxi: Host) -> None:
    client = FabricClient(esxi.image.parent / "fabric" / "esxi-esxi-1.sock", timeout=5)
    info = client.call("host.info")
    assert info["thumbprint_sha1"] == esxi.host.sha1
    assert (info["name"], info["address"]) == ("esxi-1", "127.0.0.1")
    ticket = {"vm": "vm1", "datastore": "datastore1", "folder": "vm1", "read_only": True, "ttl": 30}
    client.call("ticket.issue", session_id="52aa-1", **ticket)
    with session(esxi.address, "52aa-1") as nfc:
        assert nfc.open(esxi.path)[0]
        nfc.close()
    for wrong in ({"session_id": "52aa-1"}, {"session_id": ""}, {"session_id": "x", "ttl": 0}):
        with pytest.raises(FabricError) as caught:
            client.call("ticket.issue", **{**ticket, **wrong})
        assert caught.value.code == "malformed"
    with pytest.raises(FabricError) as caught:
        client.call("ticket.list")
    assert caught.value.code == "unknown-method"
    client.close()


def test_one_ticket_asked_for_by_many_at_once(esxi: Host) -> None:
    ticket = esxi.ticket()
    clients = [Authd(esxi.address) for _ in range(8)]
    for client in clients:
        client.tell(f"SESSION {ticket}")
    for client in clients:
        client.tell("PROXY nfc")
    answers = sorted(client.stream.line()[:3] for client in clients)
    assert answers == ["200"] + ["513"] * 7
    for client in clients:
        client.close()
