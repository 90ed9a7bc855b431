# SPDX-License-Identifier: MIT
"""The catalogue of errors.

    VadplabError                 code, exit code, step, host, target, port, symptom, message, next
    ├── InputError        (2)    bad input; nothing was changed
    ├── MissingError      (3)    something needed is missing, or nothing could be checked
    ├── ConnectError      (1)    a connection attempt failed: one class per symptom, so each has a code of its own
    │   ├── ConnectTimedOut, ConnectRefused, ConnectProhibited, ConnectUnreachable, ConnectReset, NameNotResolved
    │   ├── TlsFailed, ThumbprintMismatch
    │   └── AuthenticationFailed
    └── ...                      each room adds its own beside its code, by subclassing

Every class carries a stable `code`; `catalogue()` lists them and a test refuses duplicates. The docstring's first line
is what it means; `advice` is the next thing to do. Exit codes are one table for all commands: 0 done, 1 failed, 2 bad
input, 3 missing, 4 witnesses disagree (precedence 2 > 3 > 4 > 1 > 0).
"""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any, ClassVar


class VadplabError(Exception):
    """An error of the catalogue."""

    code: ClassVar[str] = "internal"
    exit_code: int = 1
    symptom: ClassVar[str] = "failed"
    advice: ClassVar[str] = "Report this with the logs: it should not happen."

    def __init__(
        self,
        message: str,
        *,
        step: str | None = None,
        host: str | None = None,
        target: str | None = None,
        port: int | None = None,
        next: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.step = step
        self.host = host
        self.target = target
        self.port = port
        self.next = next or self.advice

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: code, step, host, target, port, symptom, message, next."""
        return {
            "code": self.code,
            "step": self.step,
            "host": self.host,
            "target": self.target,
            "port": self.port,
            "symptom": self.symptom,
            "message": self.message,
            "next": self.next,
        }

    def __str__(self) -> str:
        where = f"step {self.step}: " if self.step else ""
        return f"{where}{self.message} [{self.code}]"


class RemoteError(VadplabError):
    """An error reported by another process of the engine; it keeps the original's code and fields."""

    code = "remote.failed"
    advice = "See the other process's log."

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(
            str(fields.get("message", "")),
            step=fields.get("step"),
            host=fields.get("host"),
            target=fields.get("target"),
            port=fields.get("port"),
            next=fields.get("next"),
        )
        self.fields = fields
        self.exit_code = int(fields.get("exit_code") or self.exit_code)

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "code": self.fields.get("code", self.code),
            "symptom": self.fields.get("symptom", self.symptom),
        }

    def __str__(self) -> str:
        where = f"step {self.step}: " if self.step else ""
        return f"{where}{self.message} [{self.fields.get('code', self.code)}]"


class InputError(VadplabError):
    """What the user gave cannot be used."""

    code = "input.invalid"
    exit_code = 2
    symptom = "bad input"
    advice = "Correct the input and run the command again; nothing was changed."


class MissingError(VadplabError):
    """A component or a state that the command needs is not there."""

    code = "missing.component"
    exit_code = 3
    symptom = "missing"
    advice = "Run `vadplab doctor`: it names the command that installs what is missing."


class ConnectError(VadplabError):
    """A connection attempt failed."""

    code = "connect.failed"
    symptom = "failed"
    advice = "Check that the responder is up and that a rule allows the connection."


class ConnectTimedOut(ConnectError):
    """Nothing answered before the deadline: a firewall that drops, or a host that is down."""

    code = "connect.timed-out"
    symptom = "timed out"
    advice = "A firewall drops the packets or the host is down: allow this connection on every firewall on the path."


class ConnectRefused(ConnectError):
    """The connection was refused at once: nobody listens, or a firewall answers with a reset."""

    code = "connect.refused"
    symptom = "refused"
    advice = "Check that the service listens on that port; if it does, a firewall rejects with a reset."


class ConnectProhibited(ConnectError):
    """A firewall answered that the connection is administratively prohibited."""

    code = "connect.prohibited"
    symptom = "prohibited"
    advice = "A firewall rejects this connection with an ICMP message: allow it there."


class ConnectUnreachable(ConnectError):
    """There is no route to the responder."""

    code = "connect.unreachable"
    symptom = "unreachable"
    advice = "Check routes and addresses between the two hosts."


class ConnectReset(ConnectError):
    """The connection was opened and then cut before the exchange was complete."""

    code = "connect.cut"
    symptom = "cut"
    advice = "A firewall or the peer ended an open connection: look at the peer's log and at idle time-outs."


class NameNotResolved(ConnectError):
    """A host name could not be resolved."""

    code = "connect.name"
    symptom = "name not resolved"
    advice = "Give this host a DNS or hosts entry for the name."


class TlsFailed(ConnectError):
    """The TLS handshake failed."""

    code = "tls.failed"
    symptom = "TLS failed"
    advice = "Check the certificates on both sides, and that no middlebox answers in the responder's place."


class ThumbprintMismatch(TlsFailed):
    """The peer's certificate is not the one that was promised."""

    code = "tls.thumbprint"
    symptom = "certificate mismatch"
    advice = "Accept the new certificate with `infra rescan`, or find out who answers in the peer's place."


class AuthenticationFailed(ConnectError):
    """The peer refused the credentials."""

    code = "auth.failed"
    symptom = "credentials refused"
    advice = "Correct the credentials stored for this host."


def from_oserror(
    exc: BaseException, *, step: str | None, host: str | None, target: str | None, port: int | None
) -> ConnectError:
    """Class of the catalogue for a failed connect, with initiator, responder, port and symptom in its message."""
    kind: type[ConnectError] = ConnectError
    if isinstance(exc, socket.gaierror):
        kind = NameNotResolved
    elif isinstance(exc, ssl.SSLError):
        kind = TlsFailed
    elif isinstance(exc, TimeoutError) or (isinstance(exc, OSError) and exc.errno == errno.ETIMEDOUT):
        kind = ConnectTimedOut
    elif isinstance(exc, ConnectionRefusedError):
        kind = ConnectRefused
    elif isinstance(exc, ConnectionResetError | BrokenPipeError | EOFError):
        kind = ConnectReset
    elif isinstance(exc, OSError) and exc.errno == errno.EHOSTUNREACH:
        kind = ConnectProhibited
    elif isinstance(exc, OSError) and exc.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
        kind = ConnectUnreachable
    detail = "" if kind not in (ConnectError, TlsFailed) else f" ({exc})"
    return kind(f"{host} to {target}:{port}: {kind.symptom}{detail}", step=step, host=host, target=target, port=port)


def catalogue(root: type[VadplabError] = VadplabError) -> list[type[VadplabError]]:
    """Every class of the catalogue that has been imported, in definition order."""
    found = [root]
    for sub in root.__subclasses__():
        found.extend(catalogue(sub))
    return found
