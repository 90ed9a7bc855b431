# SPDX-License-Identifier: MIT
"""HTTPS for the REST service: uvicorn inside the Backup Service's own event loop, with the machine's certificate.

Clients need no certificate: they show a token. Signals stay the service's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from engine.config import EngineConfig
from engine.errors import MissingError, VadplabError

BACKLOG = 64
START_DEADLINE = 10.0
CLOSE_DEADLINE = 5.0


class RestNotListening(VadplabError):
    """The REST service cannot listen on its port."""

    code = "rest.listen"
    symptom = "cannot listen"
    advice = "Another program has the port: set `service.rest_port` to a free one."


class _Server(uvicorn.Server):
    """Says when it is up, and leaves signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class RestServer:
    """The listening service."""

    def __init__(self, config: EngineConfig, app: FastAPI) -> None:
        self._config = config
        self._app = app
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self, port: int) -> int:
        """Listens on the machine's address; gives the port. Raises RestNotListening, MissingError (certificate)."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((self._config.listen, port))
            sock.listen(BACKLOG)
        except OSError as exc:
            sock.close()
            raise RestNotListening(f"cannot listen on {self._config.listen}:{port}: {exc.strerror}") from exc
        settings = uvicorn.Config(
            self._app,
            http="h11",
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            ssl_context_factory=lambda _config, _default: self._context(),
        )
        try:
            settings.load()
        except (OSError, ssl.SSLError) as exc:
            sock.close()
            raise MissingError(f"certificate {self._config.identity.certificate} cannot be used: {exc}") from exc
        self._server = _Server(settings)
        self._serving = asyncio.create_task(self._server.serve([sock]))
        up = asyncio.create_task(self._server.up.wait())
        try:
            await asyncio.wait([up, self._serving], timeout=START_DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        if not self._server.up.is_set():
            raise RestNotListening(f"the REST service did not start on {self._config.listen}:{port}")
        return int(sock.getsockname()[1])

    async def close(self) -> None:
        """Stops listening; requests that still go on are cut after a second."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        _, late = await asyncio.wait([self._serving], timeout=CLOSE_DEADLINE)
        if late:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._config.identity.certificate)
        if self._config.keylog is not None:
            context.keylog_filename = str(self._config.keylog)
        return context
