# SPDX-License-Identifier: MIT
"""Bodies on their way: requests that are not SOAP, passed to vcsim with both bodies streamed, and what blocking code makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

from fakes.vcenter.http import Reply, Request
from fakes.vcenter.upstream import Upstream

TRANSFER_DEADLINE = 3600.0
STALLED = 300.0  # seconds that a client may leave a part of a body untaken


async def pass_on(upstream: Upstream, request: Request, spawn: Callable[[Awaitable[None]], None]) -> Reply:
    """Passes a request that is not SOAP to vcsim; `spawn` runs what moves the bodies. Raises UpstreamGone, TimeoutError."""
    ready: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    parts: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(maxsize=4)
    has_body = not request.body.done

    async def move() -> None:
        try:
            body = request.body if has_body else b""
            async with upstream.exchange(request.method, request.target, request.headers, body, TRANSFER_DEADLINE) as (
                status,
                headers,
                stream,
            ):
                told = headers.get("content-length")
                length = int(told) if told and told.isdigit() else (0 if stream.done else None)
                ready.set_result(Reply(status, headers, _taken(parts), length=length))
                async for part in stream:
                    await asyncio.wait_for(parts.put(part), STALLED)
                await parts.put(None)
        except BaseException as exc:
            if not ready.done():
                ready.set_exception(exc)
            else:
                await parts.put(exc)

    spawn(move())
    return await ready


async def _taken(parts: asyncio.Queue[bytes | BaseException | None]) -> Any:
    while (part := await parts.get()) is not None:
        if isinstance(part, BaseException):
            raise ConnectionResetError(str(part))
        yield part


async def in_thread(parts: Generator[bytes, None, None]) -> AsyncIterator[bytes]:
    """What a blocking generator makes, each part in a thread; it is closed when nobody wants the rest."""
    step: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, parts, None))
            part = await asyncio.shield(step)
            if part is None:
                return
            yield part
    finally:
        if step is not None:
            await asyncio.wait([step])
        await asyncio.to_thread(parts.close)
