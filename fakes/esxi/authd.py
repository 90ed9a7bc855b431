# SPDX-License-Identifier: MIT
"""The text dialogue of the VMware authentication daemon (nfc reference section 2): one line in, at most one line out.

A pure state machine: no socket, no clock. The server sends `GREETING` in clear, starts TLS, then feeds lines here until
an answer carries `end` (close the connection) or `service` (go on with NFC for that ticket).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fakes.esxi.tickets import Ticket, TicketRefused

BANNER = (
    "220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP, "
    "MKSDisplayProtocol:VNC , VMXARGS supported, NFCSSL supported/t, SHA256 supported"
)
GREETING = BANNER.encode() + b"\r\n"

# what PROXY names -> (the service that authd connects to, TLS again?)
SERVICES: Mapping[str, tuple[str, bool]] = {
    "vpxa-nfc": ("ha-nfc", False),
    "nfc": ("ha-nfc", False),
    "vpxa-nfcssl": ("ha-nfcssl", True),
    "nfcssl": ("ha-nfcssl", True),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon does after a line. `reason` says for the journal why a PROXY was refused."""

    text: str | None = None
    end: bool = False
    service: str | None = None
    tls_again: bool = False
    ticket: Ticket | None = None
    reason: str | None = None

    @property
    def code(self) -> int:
        """The three-digit code; 0 without a reply."""
        return int(self.text[:3]) if self.text else 0

    def line(self) -> bytes:
        """The reply on the wire; empty when there is none."""
        return self.text.encode() + b"\r\n" if self.text else b""


class Dialogue:
    """One client's dialogue.

    Args:
        thumbprint_sha256: of the host's certificate, colon separated.
        redeem: takes a ticket by its session id; raises TicketRefused, with reason `limit` when the host has no room.
        accounts: the host's own accounts; those of vCenter are never among them.
    """

    def __init__(
        self,
        *,
        thumbprint_sha256: str,
        redeem: Callable[[str], Ticket],
        accounts: Mapping[str, str] | None = None,
    ) -> None:
        self._thumbprint = thumbprint_sha256
        self._redeem = redeem
        self._accounts = accounts or {}
        self.session_id: str | None = None
        self._user: str | None = None
        self._logged_in = False

    def feed(self, line: bytes) -> Answer:
        """The answer to one line (without its end)."""
        try:
            text = line.decode("ascii")
        except UnicodeDecodeError:
            return Answer("502 Malformed command")
        command, _, argument = text.partition(" ")
        match command:
            case "SESSION":
                self.session_id = argument.strip() or None
                return Answer()
            case "BANNER":
                return Answer(BANNER)
            case "THUMBPRINT_SHA2":
                return self._certificate(argument)
            case "PROXY":
                return self._proxy(argument.strip())
            case "USER":
                return self._name(argument.strip())
            case "PASS":
                return self._password(argument)
            case "QUIT":
                return Answer("221 Goodbye", end=True)
            case _:
                return Answer("500 Unknown command" if command else "502 Malformed command")

    def _certificate(self, argument: str) -> Answer:
        if not argument or (argument != "PlainText" and (":" in argument or " " in argument)):
            return Answer("501 Invalid arguments")
        return Answer(f"200 {self._thumbprint}")

    def _name(self, name: str) -> Answer:
        if not name:
            return Answer("501 Invalid arguments")
        self._user = name
        self._logged_in = False
        return Answer(f"331 Password required for {name}.")

    def _password(self, password: str) -> Answer:
        if self._user is None:
            return Answer("503 Login with USER first")
        if self._accounts.get(self._user) != password:
            return Answer("530 Login incorrect", reason="login")
        self._logged_in = True
        return Answer(f"230 User {self._user} logged in.")

    def _proxy(self, service: str) -> Answer:
        if self.session_id is None and not self._logged_in:
            return Answer("530 Please login with USER and PASS", reason="no-session")
        if service not in SERVICES:
            return Answer("554 Service not found", reason="service")
        if self.session_id is None:
            return Answer("513 Ticket required", reason="no-session")
        try:
            ticket = self._redeem(self.session_id)
        except TicketRefused as exc:
            if exc.reason == "limit":
                return Answer("514 Too many connections", reason="limit")
            return Answer("513 Invalid or expired ticket", reason=f"ticket-{exc.reason}")
        target, tls_again = SERVICES[service]
        return Answer(f"200 Connect {target}", service=service, tls_again=tls_again, ticket=ticket)
