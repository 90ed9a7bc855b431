# SPDX-License-Identifier: MIT
"""The console's commands: each makes calls to the Backup Service and gives a result document with its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.console.output import Output
from engine.console.receive import receive_disk
from engine.dialer import Connection as Dialed
from engine.errors import InputError, VadplabError
from engine.events import EventLog, new_id
from engine.report import Reporter
from engine.rpc.client import Client

STOP_DEADLINE = 330.0
STORE_DEADLINE = 660.0
QUEUE_IDLE = 24 * 3600.0


class Interrupted(VadplabError):
    """The command was interrupted."""

    code = "console.interrupted"
    symptom = "interrupted"
    advice = "What was complete by then stays; run the command again."


class TargetExists(InputError):
    """The file to restore to exists, or its folder does not."""

    code = "restore.target-exists"
    advice = "Name a new file in a folder that exists; nothing was overwritten."


class Console:
    """A console: one connection to the Backup Service for one command."""

    def __init__(self, config: EngineConfig, output: Output) -> None:
        self._config = config
        self._output = output

    async def job_run(self, name: str, *, options: dict[str, Any], session: str | None) -> dict[str, Any]:
        """Runs a job with `options` (mode, direction, failover, full); SIGINT and SIGTERM stop it and wait for its clean end."""
        session = session or new_id()
        async with Connection(self._config, session, "1") as client:
            running = asyncio.create_task(
                client.call(
                    "job.run",
                    deadline=None,
                    idle=QUEUE_IDLE,
                    on_progress=self._output.progress,
                    name=name,
                    **options,
                    session=session,
                )
            )
            return await interruptible(running, client.call("job.stop", deadline=STOP_DEADLINE, name=name))

    async def job_run_over_rest(
        self, name: str, *, token_file: Path | None, options: dict[str, Any], session: str | None
    ) -> dict[str, Any]:
        """Runs a job over REST; SIGINT and SIGTERM stop it. There is no progress: the service answers at the end."""
        from engine.console import rest

        if token_file is None:
            raise InputError("--rest needs --token-file", next="Make one: `rest token create NAME --to FILE`.")
        running = asyncio.create_task(
            rest.job_run(
                self._config,
                name,
                token_file=token_file,
                options=options,
                session=session or new_id(),
            )
        )
        return await interruptible(running, cancel(running))

    async def job_list(self) -> dict[str, Any]:
        """Every job's settings."""
        return {"schema": "vadplab.job-list/1", **await self.call("job.list")}

    async def job_show(self, name: str) -> dict[str, Any]:
        """One job, its VMs as the configuration database knows them, its last runs."""
        return {"schema": "vadplab.job/1", **await self.call("job.show", name=name)}

    async def job_stop(self, name: str) -> dict[str, Any]:
        """Stops every run of a job and waits for the end."""
        return {"schema": "vadplab.job-stop/1", **await self.call("job.stop", STOP_DEADLINE, name=name)}

    async def infra_show(self) -> dict[str, Any]:
        """vCenters, servers, VMs and guests, without secrets."""
        return {"schema": "vadplab.infrastructure/1", **await self.call("infra.show")}

    async def infra_rescan(self, *, session: str | None) -> dict[str, Any]:
        """Reads the infrastructure anew."""
        session = session or new_id()
        async with Connection(self._config, session, "i1") as client:
            found: dict[str, Any] = await client.call(
                "infra.rescan", deadline=None, idle=STORE_DEADLINE, on_progress=self._output.progress, session=session
            )
            return found

    async def points_list(self) -> dict[str, Any]:
        """The restore points of every repository."""
        return {"schema": "vadplab.points/1", **await self.call("points.list", STORE_DEADLINE)}

    async def restore(self, point: str, *, disk: int, to: Path, vm: str | None, session: str | None) -> dict[str, Any]:
        """Restores a disk to a new sparse file (steps r1 to r3)."""
        if to.exists() or not to.parent.is_dir():
            raise TargetExists(f"{to} {'exists' if to.exists() else 'is in no folder'}")
        session = session or new_id()
        async with Connection(self._config, session, "r1") as client:
            restoring = asyncio.create_task(self._restore(client, session, point, disk, to, vm))
            return await interruptible(restoring, cancel(restoring))

    async def _restore(
        self, client: Client, session: str, point: str, disk: int, to: Path, vm: str | None
    ) -> dict[str, Any]:
        asked = {"point": point, "disk": disk, "vm": vm}
        async with serving_mover(self._config, self._output, client, "restore.disk", session, asked) as mover:
            found = mover.answer
            stats = await receive_disk(
                mover.connection,
                self._config.make_identity(),
                found["token"],
                found["size"],
                to,
                expect=found["name"],
                events=mover.events,
                on_progress=lambda p: self._output.progress({"kind": "restore", **p}),
            )
        return {
            "schema": "vadplab.restore-result/1",
            "run": session,
            "kind": "restore",
            "result": "success",
            "error": None,
            **{k: found[k] for k in ("point", "vm", "disk", "label", "consistency")},
            "repository": found["name"],
            "file": str(to),
            "size": stats.size,
            "written": stats.written,
            "clusters": stats.clusters,
            "received": stats.received,
        }

    async def call(self, method: str, deadline: float = 30.0, **params: Any) -> dict[str, Any]:
        """One call of the Backup Service on a connection of its own."""
        async with Connection(self._config, None, None) as client:
            found: dict[str, Any] = await client.call(method, deadline=deadline, **params)
            return found


class Connection:
    """The connection to the Backup Service, as an asynchronous context."""

    def __init__(self, config: EngineConfig, session: str | None, step: str | None) -> None:
        self._config = config
        self._step = step
        self._events: EventLog = config.event_log("console", session=session)
        self._client: Client | None = None

    async def __aenter__(self) -> Client:
        server = self._config.backup_server
        try:
            connection = await self._config.dialer(self._events).dial(
                server.name, server.port, step=self._step, name=server.name
            )
            self._client = await Client.open(
                connection, self._config.make_identity(), expect=server.name, events=self._events
            )
        except BaseException:
            self._events.close()
            raise
        return self._client

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()
        self._events.close()


@dataclass(frozen=True, slots=True)
class ServingMover:
    """A Data Mover on the repository: the Backup Service's answer, and the connection to the mover."""

    answer: dict[str, Any]
    connection: Dialed
    events: EventLog


@contextlib.asynccontextmanager
async def serving_mover(
    config: EngineConfig, output: Output, client: Client, method: str, session: str, asked: dict[str, Any]
) -> AsyncIterator[ServingMover]:
    """Asks the Backup Service for a mover that serves a disk (`method`), and connects to it: step r3, as long as this is open."""
    found = await client.call(method, deadline=STORE_DEADLINE, on_progress=output.progress, session=session, **asked)
    result = "failed"
    events = config.event_log("console", session=session)
    try:
        with Reporter(events, output.progress).step("r3", task=f"{found['vm']}:{found['disk']}"):
            connection = await config.dialer(events).dial(found["host"], found["port"], step="r3", name=found["name"])
            yield ServingMover(found, connection, events)
        result = "success"
    finally:
        events.close()
        await client.call("restore.end", session=session, result=result)


async def interruptible(work: asyncio.Task[dict[str, Any]], stop: Awaitable[Any]) -> dict[str, Any]:
    """The result of `work`; the first SIGINT or SIGTERM awaits `stop`, and `work` is still waited for."""
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    waiting = asyncio.create_task(interrupted.wait())
    stopping: asyncio.Future[Any] | None = None
    try:
        await asyncio.wait([work, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            stopping = asyncio.ensure_future(stop)
            await asyncio.wait([work], timeout=STOP_DEADLINE)
            if not work.done():
                raise Interrupted("interrupted; the service did not answer in time")
        if work.cancelled():
            raise Interrupted("interrupted")
        return work.result()
    finally:
        waiting.cancel()
        work.cancel()
        if stopping is not None:
            await asyncio.wait([stopping], timeout=5.0)
            stopping.cancel()
        elif asyncio.iscoroutine(stop):
            stop.close()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def cancel(work: asyncio.Task[Any]) -> None:
    """For `interruptible`: stopping is cancelling, the service has nothing to be told."""
    work.cancel()
