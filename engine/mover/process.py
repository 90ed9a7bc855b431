# SPDX-License-Identifier: MIT
"""The Data Mover's process: one task, one control connection, one ready line.

`python -m engine.mover --config FILE --session S --task T --role source|target|reader|writer` prints `{"port": N, "token": "…"}`
once it answers, and ends with its control connection.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import secrets
from pathlib import Path
from typing import Any

from engine.config import EngineConfig, load
from engine.mover import protocol
from engine.mover.errors import NoFreePort, WrongToken
from engine.mover.roles import ROLES, Role
from engine.mover.task import MoverTask
from engine.mover.telling import TellingEvents, told
from engine.processes import ready, until_signal
from engine.rpc.server import Call, ListenFailed, Peer, Server, UnknownMethod
from engine.store.errors import on_host

HELLO_DEADLINE = 60.0
"""Seconds in which the Backup Manager must have said hello."""


class Mover:
    """Serves the control connection of one task."""

    def __init__(self, config: EngineConfig, session: str, task: str, role: Role) -> None:
        self.config = config
        self.role = role
        self.token = secrets.token_urlsafe(24)
        self.done = asyncio.Event()
        self._greeted = asyncio.Event()
        self._identity = config.make_identity()
        if config.events is not None:
            config.events.parent.mkdir(parents=True, exist_ok=True)
        self._events = TellingEvents(config.events, host=config.name, process="data-mover", session=session, task=task)
        self._task = MoverTask(config, self._identity, self._events, role)
        self._server = Server(self._identity, self._handle, on_disconnect=self._left)
        self._manager: Peer | None = None

    async def start(self) -> int:
        """Listens on the first free port of the range; gives the port. Raises NoFreePort."""
        first, last = self.config.mover_ports
        for port in range(first, last + 1):
            try:
                return await self._server.start(self.config.listen, port)
            except ListenFailed:
                continue
        raise NoFreePort(f"{self.config.name}: no free port in {first}-{last}", host=self.config.name)

    async def run(self) -> None:
        """Until the control connection ends; gives up when nobody says hello in time."""
        try:
            try:
                await asyncio.wait_for(self._greeted.wait(), HELLO_DEADLINE)
            except TimeoutError:
                return
            await self.done.wait()
        finally:
            await self.close()

    async def close(self) -> None:
        """Gives everything back."""
        await self._task.close()
        await self._server.close()
        self._events.close()

    def end(self) -> None:
        """Makes `run` return."""
        self._greeted.set()
        self.done.set()

    def _left(self, peer: Peer) -> None:
        if peer is self._manager:
            self.done.set()

    async def _handle(self, call: Call) -> Any:
        if call.method == "hello":
            return self._hello(call)
        if call.peer is not self._manager:
            raise WrongToken(f"{call.method} before hello with this mover's token", host=call.peer_name)
        with on_host(self.config.name):
            return await self._answer(call)

    def _hello(self, call: Call) -> dict[str, Any]:
        params = protocol.parse(protocol.Hello, "hello", call.params)
        if self._manager is not None or not hmac.compare_digest(params.token, self.token):
            raise WrongToken(f"{call.peer_name}: the token is not this mover's, or was used", host=call.peer_name)
        self._manager = call.peer
        self._greeted.set()
        return {"name": self.config.name, "role": self.role, "version": protocol.VERSION}

    async def _answer(self, call: Call) -> Any:
        task, params = self._task, call.params
        match call.method:
            case "rules":
                task.set_rules(protocol.parse(protocol.Rules, call.method, params))
                return {}
            case "data.listen":
                return await task.data_listen(protocol.parse(protocol.DataListen, call.method, params))
            case "data.connect":
                await task.data_connect(protocol.parse(protocol.DataConnect, call.method, params))
                return {}
            case "source.open":
                opening = task.source_open(protocol.parse(protocol.SourceOpen, call.method, params))
                return await told(self._events, call.progress, opening)
            case "source.read":
                read = task.source_read(protocol.parse(protocol.SourceRead, call.method, params), call.progress)
                return await told(self._events, call.progress, read)
            case "writer.open":
                opening = task.writer_open(protocol.parse(protocol.WriterOpen, call.method, params))
                return await told(self._events, call.progress, opening)
            case "writer.write":
                protocol.parse(protocol.Empty, call.method, params)
                return await told(self._events, call.progress, task.writer_write(call.progress))
            case "target.open":
                await task.target_open(protocol.parse(protocol.TargetOpen, call.method, params))
                return {}
            case "target.commit":
                return await task.target_commit(
                    protocol.parse(protocol.TargetCommit, call.method, params), call.progress
                )
            case "reader.open":
                return await task.reader_open(protocol.parse(protocol.ReaderOpen, call.method, params))
            case "reader.wait":
                return await task.reader_wait()
            case "abort":
                await task.close()
                return {}
        raise UnknownMethod(f"{self.config.name}: a Data Mover has no method {call.method}")


def main(argv: list[str]) -> int:
    """Runs one mover."""
    parser = argparse.ArgumentParser(prog="python -m engine.mover", description="Data Mover of one task.")
    parser.add_argument("--config", type=Path, required=True, help="the machine's configuration file")
    parser.add_argument("--session", required=True, help="id of the job run or restore")
    parser.add_argument("--task", required=True, help="id of the task")
    parser.add_argument("--role", required=True, choices=ROLES)
    options = parser.parse_args(argv)
    return asyncio.run(_serve(load(options.config), options.session, options.task, options.role))


async def _serve(config: EngineConfig, session: str, task: str, role: Role) -> int:
    mover = Mover(config, session, task, role)
    port = await mover.start()
    ready({"port": port, "token": mover.token})
    work = asyncio.create_task(mover.run())
    signalled = asyncio.create_task(until_signal())
    try:
        await asyncio.wait([work, signalled], return_when=asyncio.FIRST_COMPLETED)
    finally:
        mover.end()
        signalled.cancel()
    await work
    return 0
