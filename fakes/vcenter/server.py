# SPDX-License-Identifier: MIT
"""The front of the gateway: an HTTPS server with keep-alive that hands each request to one handler.

Concurrency is asyncio, one task a connection. A request may stay unanswered as long as its handler likes (long polls);
when the client goes away meanwhile, the handler is cancelled. asyncio sets TCP_NODELAY on its sockets itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from fakes.vcenter.http import MAX_HEAD, BadRequest, Reply, Request, read_request, write_reply

Handler = Callable[[Request], Awaitable[Reply]]
IDLE = 900.0  # seconds a connection may wait for its next request
UNREAD = 64 << 20  # bytes of a body that are taken though the reply is known
LINGER = 5.0
_log = logging.getLogger(__name__)


class HttpsServer:
    """Listens on one address; every connection is a task that ends with `stop`."""

    def __init__(self, handler: Handler, context: ssl.SSLContext | None) -> None:
        self._handler = handler
        self._context = context
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listens; returns address and port (of interest when `port` was 0). Raises OSError when that is taken."""
        handshake = 30.0 if self._context else None
        self._server = await asyncio.start_server(
            self._connected, host, port, ssl=self._context, limit=MAX_HEAD, backlog=256, ssl_handshake_timeout=handshake
        )
        address = self._server.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    async def stop(self) -> None:
        """Stops listening and ends every connection.

        Waits below are `asyncio.timeout`: `wait_for` of Python 3.11 loses a cancellation that comes as what it waits for ends.
        """
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=5)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        peer = writer.get_extra_info("peername") or ("", 0)
        try:
            await self._serve(reader, writer, (str(peer[0]), int(peer[1])))
        except (ConnectionError, TimeoutError, EOFError, ssl.SSLError):
            pass  # the client went away or fell silent: its connection ends, nothing else
        except asyncio.CancelledError:
            pass  # `stop`, or the loop ends: nothing waits for this task's outcome
        finally:
            self._connections.discard(task)
            with contextlib.suppress(AttributeError):  # Python 3.11's TLS transport, when it is closed already
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: tuple[str, int]) -> None:
        gone = asyncio.ensure_future(writer.wait_closed())
        gone.add_done_callback(_retrieve)
        try:
            while True:
                try:
                    async with asyncio.timeout(IDLE):
                        request = await read_request(reader)
                    request.client = client
                    if (request.headers.get("expect") or "").lower() == "100-continue":
                        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    reply = await self._answer(request, gone)
                except BadRequest as exc:
                    refusal = Reply.text(exc.status, str(exc))
                    await write_reply(writer, refusal, head_only=False, keep_alive=False)
                    break
                with contextlib.suppress(TimeoutError, EOFError, BadRequest):
                    async with asyncio.timeout(LINGER):
                        await request.body.discard(UNREAD)
                keep = request.keep_alive and request.body.done
                await write_reply(writer, reply, head_only=request.method == "HEAD", keep_alive=keep)
                if not keep:
                    break
            writer.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await asyncio.shield(gone)
        finally:
            gone.cancel()

    async def _answer(self, request: Request, gone: asyncio.Future[None]) -> Reply:
        work = asyncio.ensure_future(self._handler(request))
        try:
            waits: set[asyncio.Future[Any]] = {work, gone}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ConnectionResetError("the client went away")
            return work.result()
        except BadRequest:
            raise
        except (ConnectionError, EOFError, asyncio.IncompleteReadError) as exc:
            raise ConnectionResetError(str(exc)) from exc
        except Exception:
            _log.exception("%s %s", request.method, request.path)
            return Reply.text(500, "internal error of the gateway")
        finally:
            work.cancel()


def _retrieve(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()
