# SPDX-License-Identifier: MIT
"""The one dialer: every outgoing connection of the engine is opened here.

It resolves the name, binds the local end, writes the attempt (step, local and remote address) before the SYN leaves,
connects with a deadline, writes the outcome, and hands over a ready blocking socket. Errors are of the catalogue and
name initiator, responder, port and symptom.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.errors import NameNotResolved, from_oserror
from engine.events import EventLog, new_id

CONNECT_TIMEOUT = 5.0


@dataclass(slots=True)
class Connection:
    """A connected blocking socket, the id of the attempt that opened it, and the step that asked for it."""

    sock: socket.socket
    attempt: str
    target: str
    port: int
    step: str | None = None


@dataclass(slots=True)
class Dialer:
    """Opens connections for one process. `resolver` maps names to addresses before the system's resolver is asked."""

    events: EventLog
    resolver: Mapping[str, str] = field(default_factory=dict)
    timeout: float = CONNECT_TIMEOUT

    def connect(
        self, target: str, port: int, *, step: str | None, name: str | None = None, timeout: float | None = None
    ) -> Connection:
        """Opens a TCP connection.

        Args:
            target: host name or IPv4 address. port: TCP port. step: the step that asks for it.
            name: what the event and the error call the target (default: `target`). timeout: seconds for the connect.

        Raises:
            ConnectError: one subclass per symptom.
        """
        label = name or target
        host = self.events.host
        attempt = new_id()
        try:
            address = (
                self.resolver.get(target)
                or socket.getaddrinfo(target, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
            )
        except OSError as exc:
            self.events.emit(
                "outcome",
                step=step,
                attempt=attempt,
                target=label,
                outcome="name not resolved",
                code=NameNotResolved.code,
                ms=0,
            )
            raise from_oserror(exc, step=step, host=host, target=label, port=port) from exc
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        start = time.monotonic()
        try:
            sock.bind((local_address(str(address)), 0))
            self.events.emit(
                "attempt",
                step=step,
                attempt=attempt,
                target=label,
                protocol="tcp",
                local=list(sock.getsockname()),
                remote=[address, port],
            )
            sock.settimeout(timeout or self.timeout)
            sock.connect((address, port))
        except OSError as exc:
            sock.close()
            error = from_oserror(exc, step=step, host=host, target=label, port=port)
            self.events.emit(
                "outcome",
                step=step,
                attempt=attempt,
                target=label,
                outcome=error.symptom,
                code=error.code,
                ms=_ms(start),
            )
            raise error from exc
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(None)
        self.events.emit("outcome", step=step, attempt=attempt, target=label, outcome="open", code=None, ms=_ms(start))
        return Connection(sock, attempt, label, port, step)

    async def dial(
        self, target: str, port: int, *, step: str | None, name: str | None = None, timeout: float | None = None
    ) -> Connection:
        """`connect` behind a thread, for asyncio callers."""
        return await asyncio.to_thread(self.connect, target, port, step=step, name=name, timeout=timeout)

    def name_of(self, address: str) -> str:
        """The name that the configuration gives an address, for events and errors."""
        return next((name for name, known in self.resolver.items() if known == address), address)


def local_address(remote: str) -> str:
    """The local IPv4 address that the kernel would use towards `remote`; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((remote, 9))
        except OSError:
            return "0.0.0.0"
        return str(probe.getsockname()[0])


def _ms(start: float) -> int:
    return round((time.monotonic() - start) * 1000)
