# SPDX-License-Identifier: MIT
"""Connections to a PostgreSQL configuration database, opened so that each one is an event of the engine.

libpq makes its own socket and cannot take a ready one (`engine.dialer` hands those out elsewhere). It is opened with
libpq's non-blocking calls instead: the attempt is written as soon as the socket exists, right after its SYN, with the
local port; the outcome when the kernel has decided, before TLS and the login. TLS is verified against the CA and the
server's name (`sslmode=verify-full`); the login is SCRAM bound to that TLS channel. The password comes from a file.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from engine.dialer import Dialer
from engine.errors import (
    AuthenticationFailed,
    ConnectError,
    ConnectRefused,
    MissingError,
    NameNotResolved,
    TlsFailed,
    VadplabError,
    from_oserror,
)
from engine.events import new_id

PORT = 5432
LOGIN_DEADLINE = 10.0
SILENCE_MS = 4000
"""How long sent bytes may stay unacknowledged before the kernel gives a connection up (TCP_USER_TIMEOUT)."""

STATEMENT_MS = 20_000


class DatabasePassword(MissingError):
    """The file with the database's password cannot be read."""

    code = "database.password"
    advice = "Set `service.database_password` to a file that only the Backup Service can read."


class LoginRefused(AuthenticationFailed):
    """The database server refused the login."""

    code = "database.login"
    advice = "Check the user, its password file and the server's pg_hba.conf; the server's log says which rule refused."


class ServerTls(TlsFailed):
    """The database server's certificate is not accepted, or it offers no TLS."""

    code = "database.tls"
    advice = "Give the server a certificate of the engine's CA with its own name, and `ssl = on`."


@dataclass(frozen=True, slots=True)
class Postgres:
    """A database on a server. `password` and `ca` are files; `root`: certificates that may sign the server's."""

    host: str
    port: int
    database: str
    user: str
    password: Path | None
    ca: Path | None
    keylog: Path | None = None

    def connect(self, dialer: Dialer, *, step: str | None) -> psycopg.Connection[tuple[object, ...]]:
        """A connection that is logged in.

        Raises:
            ConnectError: one subclass per symptom. DatabasePassword. LoginRefused. ServerTls.
        """
        attempt = _Attempt(self, dialer, step)
        pgconn = attempt.start()
        try:
            attempt.finish(pgconn)
        except BaseException:
            pgconn.finish()
            raise
        pgconn.nonblocking = 1  # as psycopg's own connect leaves it
        return psycopg.Connection(pgconn)

    def conninfo(self, address: str) -> str:
        """libpq's connection string; `address` is where the SYN goes, the name stays for the certificate."""
        fields: dict[str, Any] = {
            "host": self.host,
            "hostaddr": address,
            "port": self.port,
            "dbname": self.database,
            "user": self.user,
            "password": self._secret(),
            "passfile": os.devnull,
            "gssencmode": "disable",
            "sslmode": "disable" if self.ca is None else "verify-full",
            "tcp_user_timeout": SILENCE_MS,
            "keepalives": 0,  # no packets while nothing is asked; the pool looks at a connection before each use
            "application_name": "vadplab",
            "options": f"-c statement_timeout={STATEMENT_MS} -c timezone=UTC",
        }
        if self.ca is not None:
            fields |= {"sslrootcert": str(self.ca), "sslcertmode": "disable", "channel_binding": "require"}
            if self.keylog is not None and pq.version() >= 180000:
                fields["sslkeylogfile"] = str(self.keylog)
        return make_conninfo(**fields)

    def _secret(self) -> str:
        if self.password is None:
            return ""
        try:
            return self.password.read_text().strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise DatabasePassword(f"password file {self.password} cannot be read: {type(exc).__name__}") from exc


class _Attempt:
    """One connection attempt and its events."""

    def __init__(self, server: Postgres, dialer: Dialer, step: str | None) -> None:
        self._server = server
        self._dialer = dialer
        self._step = step
        self._id = new_id()
        self._begun = time.monotonic()
        self._decided = False
        self._deadline = self._begun + dialer.timeout

    def start(self) -> pq.abc.PGconn:
        """Sends the SYN and writes the attempt."""
        server = self._server
        try:
            address = self._dialer.resolver.get(server.host) or str(
                socket.getaddrinfo(server.host, server.port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
            )
        except OSError as exc:
            self._outcome(NameNotResolved.symptom, NameNotResolved.code)
            raise self._from(exc) from exc
        pgconn = pq.PGconn.connect_start(server.conninfo(address).encode())
        self._dialer.events.emit(
            "attempt",
            step=self._step,
            attempt=self._id,
            target=server.host,
            protocol="tcp",
            local=list(_local(pgconn)),
            remote=[address, server.port],
        )
        return pgconn

    def finish(self, pgconn: pq.abc.PGconn) -> None:
        """Waits for the kernel's answer, then for TLS and the login."""
        waiting: int = pq.PollingStatus.WRITING
        if pgconn.status == pq.ConnStatus.BAD:
            self._fail(pgconn)
        while True:
            self._wait(pgconn, waiting)
            status = pgconn.connect_poll()
            if status == pq.PollingStatus.OK:
                return
            if status not in (pq.PollingStatus.READING, pq.PollingStatus.WRITING):
                self._fail(pgconn)
            waiting = status

    def _wait(self, pgconn: pq.abc.PGconn, what: int) -> None:
        fd = pgconn.socket
        poller = select.poll()
        poller.register(fd, select.POLLOUT if what == pq.PollingStatus.WRITING else select.POLLIN)
        left = self._deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise self._decide(TimeoutError()) if not self._decided else self._from(TimeoutError())
        if not self._decided:
            with socket.socket(fileno=os.dup(fd)) as sock:
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise self._decide(OSError(number, os.strerror(number)))
            self._outcome("open", None)
            self._decided = True
            self._deadline = time.monotonic() + LOGIN_DEADLINE

    def _decide(self, exc: OSError) -> ConnectError:
        error = self._from(_with_class(exc))
        self._outcome(error.symptom, error.code)
        return error

    def _fail(self, pgconn: pq.abc.PGconn) -> None:
        text = pgconn.error_message.decode(errors="replace").strip()
        if not self._decided:
            number = next((n for n in _ERRNOS if os.strerror(n) in text), 0)
            raise self._decide(OSError(number, text))
        raise self._refused(text)

    def _refused(self, text: str) -> VadplabError:
        server, host = self._server, self._dialer.events.host
        kind: type[ConnectError] = ConnectError
        if any(word in text for word in ("authentication failed", "pg_hba.conf", "does not exist", "SCRAM")):
            kind = LoginRefused
        elif "certificate" in text or "SSL" in text:
            kind = ServerTls
        elif "starting up" in text or "shutting down" in text or "too many" in text:
            kind = ConnectRefused
        message = f"{host} to {server.host}:{server.port}: {kind.symptom} ({text.splitlines()[-1].strip()})"
        return kind(message, step=self._step, host=host, target=server.host, port=server.port)

    def _from(self, exc: OSError) -> ConnectError:
        events, server = self._dialer.events, self._server
        return from_oserror(exc, step=self._step, host=events.host, target=server.host, port=server.port)

    def _outcome(self, outcome: str, code: str | None) -> None:
        ms = round((time.monotonic() - self._begun) * 1000)
        self._dialer.events.emit(
            "outcome", step=self._step, attempt=self._id, target=self._server.host, outcome=outcome, code=code, ms=ms
        )


_ERRNOS = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ECONNRESET)


def _with_class(exc: OSError) -> OSError:
    """The same error as the subclass that the error table knows (an OSError made from a number is one already)."""
    return OSError(exc.errno, exc.strerror) if exc.errno else exc


def _local(pgconn: pq.abc.PGconn) -> tuple[str, int]:
    try:
        with socket.socket(fileno=os.dup(pgconn.socket)) as sock:
            name = sock.getsockname()
            return str(name[0]), int(name[1])
    except (OSError, psycopg.Error):
        return "", 0
