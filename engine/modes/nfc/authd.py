# SPDX-License-Identifier: MIT
"""The text dialogue with a host's authentication daemon, from the greeting to `200 Connect` (nfc reference section 2)."""

from __future__ import annotations

import re
from pathlib import Path

from engine.errors import VadplabError
from engine.modes.nfc.errors import (
    HostBusy,
    NfcCut,
    NfcProtocol,
    NfcSilent,
    NoGreeting,
    NotAuthd,
    ServiceRefused,
    TicketCertificate,
    TicketRefused,
)
from engine.modes.nfc.stream import RawStream, Stream, TlsStream
from engine.modes.ticket import Ticket
from engine.vsphere import thumbprint_matches

GREETING = re.compile(rb"^220 VMware Authentication Daemon Version (\d\S*): (.*)$")
GREETING_PATIENCE = 10.0
MAX_LINE = 1024
_BUSY = 514
_TICKET_CODES = (513, 530)


def authenticate(raw: RawStream, ticket: Ticket, *, ssl: bool, keylog: Path | None = None) -> Stream:
    """Goes through the dialogue and returns what the NFC messages travel on: the raw stream (NBD), or a new TLS (NBDSSL).

    Raises:
        NoGreeting, NotAuthd, TlsFailed, TicketCertificate, TicketRefused, HostBusy, ServiceRefused, NfcSilent, NfcCut.
    """
    _greeting(raw)
    tls = TlsStream(raw, exact=True, keylog=keylog)
    _check(raw, tls.handshake(), ticket)
    tls.send(f"SESSION {ticket.session}\r\n".encode())  # never answered
    tls.send(b"THUMBPRINT_SHA2 PlainText\r\n")
    code, text = _reply(raw, tls)
    # Hosts older than this command answer 500: the ticket's SHA-1 was checked all the same.
    if code == 200 and not thumbprint_matches(text, tls.certificate):
        raise TicketCertificate(f"{raw.route}: the host names another certificate than it uses", **raw.where)
    service = f"{ticket.service}ssl" if ssl else ticket.service
    tls.send(f"PROXY {service}\r\n".encode())
    _connected(raw, *_reply(raw, tls), service)
    if not ssl:
        return raw
    second = TlsStream(raw, exact=False, keylog=keylog)
    _check(raw, second.handshake(), ticket)
    return second


def _greeting(raw: RawStream) -> None:
    before, raw.patience = raw.patience, GREETING_PATIENCE
    try:
        line = _line(raw, raw)
    except (NfcSilent, NfcCut) as exc:
        how = "nothing came" if isinstance(exc, NfcSilent) else "it was closed"
        raise NoGreeting(f"{raw.route}: connected, but {how} instead of a greeting", **raw.where) from exc
    finally:
        raw.patience = before
    match = GREETING.match(line)
    if match is None:
        raise NotAuthd(f"{raw.route}: not an authentication daemon ({line[:40]!r})", **raw.where)
    if b"SSL Required" not in match[2]:
        raise NotAuthd(f"{raw.route}: the authentication daemon does not offer SSL", **raw.where)


def _check(raw: RawStream, certificate: bytes, ticket: Ticket) -> None:
    if ticket.thumbprint and not thumbprint_matches(ticket.thumbprint, certificate):
        raise TicketCertificate(f"{raw.route}: the host's certificate is not the one in the ticket", **raw.where)


def _connected(raw: RawStream, code: int, text: str, service: str) -> None:
    if code == 200:
        return
    error: type[VadplabError] = ServiceRefused
    if code in _TICKET_CODES:
        error = TicketRefused
    elif code == _BUSY:
        error = HostBusy
    raise error(f"{raw.route}: {error.symptom}: {service}: {code} {text}", **raw.where)


def _reply(raw: RawStream, stream: Stream) -> tuple[int, str]:
    line = _line(raw, stream)
    if not re.match(rb"^\d{3} ", line):
        raise NfcProtocol(f"{raw.route}: not an answer of authd ({line[:40]!r})", **raw.where)
    return int(line[:3]), line[4:].decode(errors="replace")


def _line(raw: RawStream, stream: Stream) -> bytes:
    """One line without its end, read byte by byte: what follows it belongs to the next layer."""
    found = bytearray()
    one = memoryview(bytearray(1))
    while not found.endswith(b"\n"):
        if len(found) >= MAX_LINE:
            raise NfcProtocol(f"{raw.route}: a line without an end", **raw.where)
        stream.read_into(one)
        found += one
    return bytes(found).rstrip(b"\r\n")
