# SPDX-License-Identifier: MIT
"""A client of the REST service: one HTTPS connection, opened by the engine's dialer for step 1. Blocking."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from engine.config import EngineConfig
from engine.dialer import Connection
from engine.errors import MissingError, RemoteError, from_oserror
from engine.events import EventLog
from engine.rest.errors import RestFailed
from engine.rpc.identity import check_peer

DEADLINE = 30.0
POLL = 20.0
_CUT = (OSError, http.client.HTTPException, EOFError)


class TokenMissing(MissingError):
    """The file with the token cannot be read."""

    code = "rest.token-file"
    advice = "Write the token into a file of its own; a console makes one with `rest token create NAME --to FILE`."


def read_token(path: Path) -> str:
    """The token in a file. Raises TokenMissing."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise TokenMissing(f"token file {path} cannot be read: {type(exc).__name__}") from exc


class RestClient:
    """A connection to the REST service of `config.backup_server`; use it as a context.

    Raises:
        ConnectError: one subclass per symptom. TlsFailed, WrongPeer. RemoteError: what the service answered.
    """

    def __init__(self, config: EngineConfig, events: EventLog, token: str, *, step: str | None = "1") -> None:
        self._config = config
        self._events = events
        self._token = token
        self._step = step
        self._http: http.client.HTTPConnection | None = None

    def __enter__(self) -> RestClient:
        server = self._config.backup_server
        dialer = self._config.dialer(self._events)
        connection = dialer.connect(server.name, server.rest_port, step=self._step, name=server.name)
        try:
            self._http = self._over(connection)
        except BaseException:
            connection.sock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            self._http.close()

    def start(self, job: str, body: dict[str, Any]) -> dict[str, Any]:
        """Starts a job; gives `{session, job, location}`."""
        return self.request("POST", f"/api/v1/jobs/{quote(job, safe='')}/start", body)

    def stop(self, job: str) -> dict[str, Any]:
        """Stops every run of a job."""
        return self.request("POST", f"/api/v1/jobs/{quote(job, safe='')}/stop", deadline=330.0)

    def wait(self, session: str, seconds: float = POLL) -> dict[str, Any]:
        """The session, once it has ended or after that time."""
        return self.request(
            "GET", f"/api/v1/sessions/{quote(session, safe='')}?wait={seconds:g}", deadline=seconds + 30
        )

    def request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, deadline: float = DEADLINE
    ) -> dict[str, Any]:
        """One request; gives the JSON object of the answer."""
        assert self._http is not None and self._http.sock is not None
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        data = None if body is None else json.dumps(body)
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            self._http.sock.settimeout(deadline)
            self._http.request(method, path, data, headers)
            answer = self._http.getresponse()
            text = answer.read()
        except _CUT as exc:
            raise self._failed(exc if isinstance(exc, OSError) else ConnectionResetError()) from exc
        try:
            found = json.loads(text) if text else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RestFailed(f"{method} {path}: {answer.status}, not a JSON object", step=self._step)
        if answer.status >= 400:
            raise RemoteError({"step": self._step, **self._error_of(found, f"{method} {path}: {answer.status}")})
        return found

    @staticmethod
    def _error_of(found: dict[str, Any], text: str) -> dict[str, Any]:
        error = found.get("error")
        if isinstance(error, dict):
            return {k: v for k, v in error.items() if v is not None}
        return {"code": RestFailed.code, "message": text, "next": RestFailed.advice}

    def _over(self, connection: Connection) -> http.client.HTTPConnection:
        name, port = self._config.backup_server.name, self._config.backup_server.rest_port
        context = ssl.create_default_context(cafile=str(self._config.identity.ca))
        context.check_hostname = False  # names, and never an address, are in the engine's certificates: `check_peer`
        if self._config.keylog is not None:
            context.keylog_filename = str(self._config.keylog)
        connection.sock.settimeout(DEADLINE)
        try:
            secure = context.wrap_socket(connection.sock, server_hostname=name)
        except OSError as exc:
            raise self._failed(exc) from exc
        check_peer(secure.getpeercert(), name, step=self._step, host=self._events.host, target=name, port=port)
        made = http.client.HTTPConnection(name, port, timeout=DEADLINE)
        made.sock = secure
        made.auto_open = False  # a second connection would be one without an event
        return made

    def _failed(self, exc: OSError) -> Exception:
        server = self._config.backup_server
        return from_oserror(exc, step=self._step, host=self._events.host, target=server.name, port=server.rest_port)
