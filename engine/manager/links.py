# SPDX-License-Identifier: MIT
"""The real peers of a Backup Manager: RPC over mutual TLS, pyVmomi in threads, SSH; every connection through the dialer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from engine.config import EngineConfig
from engine.dialer import Dialer
from engine.events import EventLog
from engine.guest.channel import GuestChannel, Scripts
from engine.guest.ssh import Account, SshChannel
from engine.manager.peers import Progress
from engine.processes import READY_DEADLINE
from engine.rpc.client import CALL_DEADLINE, Client
from engine.rpc.frames import WireClosed
from engine.rpc.identity import Identity
from engine.vsphere.link import VSphereLink

MARGIN = 30.0
ALIVE = 60.0
"""Seconds without a sign of life in a call that the repository works on for long."""
QUEUE_IDLE = 90.0
"""Seconds without a sign of life while the run waits for resources."""


class ServiceLink:
    """The Backup Service over loopback; `job` connects (step 3). Progress is sent in batches, in order, by one pump."""

    def __init__(self, connect: Callable[[], Awaitable[Client]], session: str) -> None:
        self._connect = connect
        self._opened: Client | None = None
        self._session = session
        self._waiting: list[dict[str, Any]] = []
        self._wake = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._ending = False

    @property
    def _client(self) -> Client:
        if self._opened is None:
            raise WireClosed("there is no connection to the Backup Service")
        return self._opened

    async def job(self) -> dict[str, Any]:
        self._opened = await self._connect()
        self._pump = asyncio.create_task(self._send_progress())
        found: dict[str, Any] = await self._client.call("manager.job", session=self._session)
        return found

    async def acquire(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        return await self._resources("resources.acquire", tasks=tasks)

    async def reassign(self, tasks: list[dict[str, Any]], lost: list[str]) -> dict[str, Any]:
        return await self._resources("resources.reassign", tasks=tasks, lost=lost)

    async def _resources(self, method: str, **params: Any) -> dict[str, Any]:
        """Waits as long as it takes, while the service says that the run is still queued."""

        def queued(_: dict[str, Any]) -> None:
            self.progress({"kind": "note", "step": "4", "text": "still queued: all suitable resources are busy"})

        found: dict[str, Any] = await self._client.call(
            method, deadline=None, idle=QUEUE_IDLE, on_progress=queued, session=self._session, **params
        )
        return found

    async def release(self) -> None:
        await self._client.call("resources.release", session=self._session)

    async def dead(self, sessions: list[str]) -> list[str]:
        answer = await self._client.call("manager.dead", session=self._session, sessions=sessions)
        return list(answer["dead"])

    async def pending(self, pending: dict[str, Any]) -> None:
        await self._client.call("manager.pending", session=self._session, pending=pending)

    def progress(self, fields: dict[str, Any]) -> None:
        if fields.get("kind") == "task":
            self._waiting = [w for w in self._waiting if w.get("kind") != "task" or w.get("task") != fields.get("task")]
        self._waiting.append(fields)
        self._wake.set()

    async def learned(self, fields: dict[str, Any]) -> None:
        await self._client.call("manager.learned", session=self._session, fields=fields)

    async def result(self, document: dict[str, Any]) -> None:
        """The run's result document; all progress is sent before it."""
        self._ending = True
        self._wake.set()
        if self._pump is not None:
            await asyncio.wait([self._pump], timeout=MARGIN)
        await self._client.call("manager.result", session=self._session, document=document)

    async def close(self) -> None:
        """Ends the connection."""
        if self._pump is not None:
            self._pump.cancel()
        if self._opened is not None:
            await self._opened.close()

    async def _send_progress(self) -> None:
        while self._waiting or not self._ending:
            await self._wake.wait()
            self._wake.clear()
            items, self._waiting = self._waiting, []
            if items:
                await self._client.call("manager.progress", session=self._session, items=items)
            if self._ending:
                self._wake.set()


class TransportLink:
    """A Transport Service."""

    def __init__(self, client: Client, session: str, facts: dict[str, Any]) -> None:
        self.facts = facts
        self._client = client
        self._session = session

    async def start_mover(self, task: str, role: str) -> tuple[int, str]:
        found = await self._client.call(
            "mover.start", deadline=READY_DEADLINE + MARGIN, session=self._session, task=task, role=role
        )
        return int(found["port"]), str(found["token"])

    async def stop_mover(self, task: str) -> None:
        await self._client.call("mover.stop", session=self._session, task=task)

    async def newest_point(self, job: str, vm: str, capacity: int) -> dict[str, Any]:
        return await self._store("points.newest", step="5a", job=job, vm=vm, capacity=capacity)

    async def begin_point(self, job: str, vm: str, point: str, *, parent: str | None, data: int, capacity: int) -> str:
        found = await self._store(
            "point.begin",
            step="21",
            job=job,
            vm=vm,
            point=point,
            kind="full" if parent is None else "incremental",
            parent=parent,
            data=data,
            capacity=capacity,
        )
        return str(found["folder"])

    async def commit_point(self, job: str, vm: str, point: str, manifest: dict[str, Any]) -> None:
        await self._store("point.commit", step="21", job=job, vm=vm, point=point, manifest=manifest)

    async def retain(self, job: str, vm: str, policy: dict[str, int]) -> dict[str, Any]:
        return await self._store("points.prune", step=None, job=job, vm=vm, **policy)

    async def _store(self, method: str, *, step: str | None, **params: Any) -> dict[str, Any]:
        found: dict[str, Any] = await self._client.call(method, deadline=None, idle=ALIVE, step=step, **params)
        return found

    async def abort_point(self, job: str, vm: str, point: str) -> None:
        await self._client.call("point.abort", step="21", job=job, vm=vm, point=point)

    async def close(self) -> None:
        await self._client.close()


class MoverLink:
    """The control connection of a Data Mover."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.closed = client.closed

    async def call(
        self,
        method: str,
        *,
        step: str,
        deadline: float | None = CALL_DEADLINE,
        idle: float | None = None,
        on_progress: Progress | None = None,
        **params: Any,
    ) -> Any:
        return await self._client.call(
            method, step=step, deadline=deadline, idle=idle, on_progress=on_progress, **params
        )

    async def close(self) -> None:
        await self._client.close()


class RealPeers:
    """Opens the real ones for one session."""

    def __init__(
        self, config: EngineConfig, identity: Identity, events: EventLog, session: str, service: ServiceLink
    ) -> None:
        self._config = config
        self._identity = identity
        self._events = events
        self._session = session
        self.service = service

    async def transport(self, server: dict[str, Any], *, step: str) -> TransportLink:
        client = await self._client(server, server["port"], step=step, task=None)
        try:
            facts: dict[str, Any] = await client.call("hello", step=step)
        except BaseException:
            await client.close()
            raise
        return TransportLink(client, self._session, facts)

    async def mover(self, server: dict[str, Any], port: int, token: str, *, step: str, task: str) -> MoverLink:
        client = await self._client(server, port, step=step, task=task)
        try:
            await client.call("hello", step=step, token=token)
        except BaseException:
            await client.close()
            raise
        return MoverLink(client)

    async def vsphere(self, vcenter: dict[str, Any], *, step: str) -> VSphereLink:
        return await VSphereLink.open(self._dialer(None), vcenter, step=step, keylog=self._config.keylog)

    def guest(self, vm: str, address: str, account: dict[str, Any], scripts: Scripts) -> GuestChannel:
        return SshChannel(
            self._dialer(vm),
            target=vm,
            address=address,
            account=Account(**account),
            session=self._session,
            scripts=scripts,
        )

    async def _client(self, server: dict[str, Any], port: int, *, step: str, task: str | None) -> Client:
        dialer = self._dialer(task)
        connection = await dialer.dial(server["address"], port, step=step, name=server["name"])
        return await Client.open(connection, self._identity, expect=server["name"], events=dialer.events)

    def _dialer(self, task: str | None) -> Dialer:
        events = self._events.for_session(self._session, task=task) if task is not None else self._events
        return Dialer(events, self._config.resolver)
