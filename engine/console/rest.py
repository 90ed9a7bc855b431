# SPDX-License-Identifier: MIT
"""`job run --rest`: the console as a client of the REST service (9419), as a script would be. Step 1 is that connection."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.rest.client import RestClient, read_token

_ENDED = "ended"


async def job_run(
    config: EngineConfig, name: str, *, token_file: Path, options: dict[str, Any], session: str
) -> dict[str, Any]:
    """Starts a job and waits for its end; gives the run's result document. When cancelled, it stops the job first."""
    token = read_token(token_file)
    events = config.event_log("console", session=session)
    body = {**options, "session": session}
    try:
        client = await asyncio.to_thread(RestClient(config, events, token).__enter__)
        try:
            await asyncio.to_thread(client.start, name, body)
            found = await _ended(client, session)
        except asyncio.CancelledError:
            await asyncio.to_thread(_stop, config, token, name)
            raise
        finally:
            client.__exit__(None, None, None)
    finally:
        events.close()
    document: dict[str, Any] = found["document"]
    return document


async def _ended(client: RestClient, session: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while found.get("state") != _ENDED:
        found = await asyncio.to_thread(client.wait, session)
    return found


def _stop(config: EngineConfig, token: str, name: str) -> None:
    """Over a connection of its own: the other one waits for an answer."""
    events = config.event_log("console")
    try:
        with RestClient(config, events, token, step=None) as client:
            client.stop(name)
    finally:
        events.close()
