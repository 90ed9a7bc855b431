# SPDX-License-Identifier: MIT
"""Restore points, and the service's part of a restore: r1 asked for by the console, r2 a Data Mover starts on the repository.

The console then receives the disk from that mover (r3), or reaches the disk servers of an instant recovery (r12). The mover's
control connection is the service's: it is held until the console's own connection to the service ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.config import EngineConfig
from engine.events import EventLog
from engine.processes import READY_DEADLINE
from engine.report import Reporter
from engine.restore.points import STORE_DEADLINE, DiskUnknown, Found, PointUnknown, disk_of, find
from engine.rpc.client import Client
from engine.servers import connect

__all__ = ["DiskUnknown", "PointUnknown", "Restoring", "points", "recover", "start"]


@dataclass(slots=True)
class Restoring:
    """A restore that goes on: what the console needs, and the connections that keep the mover, or the disk servers, alive."""

    answer: dict[str, Any]
    transport: Client
    control: Client | None
    events: EventLog

    async def close(self) -> None:
        """Ends the mover, or the disk servers."""
        if self.control is not None:
            await self.control.close()
        await self.transport.close()


async def points(config: EngineConfig, events: EventLog, servers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The restore points of every repository, oldest first, each with its `repository`. Raises ConnectError."""
    found: list[dict[str, Any]] = []
    for server in servers:
        if "repository" in server["roles"]:
            client = await connect(config, events, server, step=None)
            try:
                answer = await client.call("points.list", deadline=STORE_DEADLINE)
            finally:
                await client.close()
            found += [{"repository": server["name"], **p} for p in answer["points"]]
    return sorted(found, key=lambda p: str(p["point"]))


async def start(
    config: EngineConfig,
    report: Reporter,
    servers: list[dict[str, Any]],
    session: str,
    *,
    point: str,
    vm: str | None,
    disk: int,
    reads: bool = False,
) -> Restoring:
    """Steps r1 and r2. `reads`: the console reads what it needs of the disk, for single files.

    Raises:
        PointUnknown, DiskUnknown, ConnectError, RemoteError.
    """
    with report.step("r1", point=point, disk=disk):
        pass  # the call is the start
    with report.step("r2") as result:
        found = await find(config, report.events, servers, point, vm, step="r2")
        try:
            result["repository"] = found.server["name"]
            return await _open(config, report.events, found, session, disk, reads)
        except BaseException:
            await found.transport.close()
            raise


async def recover(
    config: EngineConfig,
    report: Reporter,
    servers: list[dict[str, Any]],
    session: str,
    *,
    point: str,
    vm: str | None,
    disks: list[int],
    port: int | None,
) -> Restoring:
    """Instant recovery, steps r1 and r2: a disk server starts on the repository for each disk (all of them: no `disks`).

    `port`: of the first disk, the next ones follow; None: free mover ports. Raises as `start`.
    """
    with report.step("r1", point=point, disks=disks):
        pass  # the call is the start
    with report.step("r2") as result:
        found = await find(config, report.events, servers, point, vm, step="r2")
        try:
            result["repository"] = found.server["name"]
            if found.point.get("error"):
                raise PointUnknown(f"{point} is damaged: {found.point['error']}")
            chosen = [disk_of(found.point, disk) for disk in disks] or list(found.point["disks"])
            served = []
            for number, entry in enumerate(chosen):
                started = await found.transport.call(
                    "recovery.start",
                    step="r2",
                    deadline=STORE_DEADLINE,
                    session=session,
                    folder=found.point["folder"],
                    disk=entry["key"],
                    port=None if port is None else port + number,
                )
                served.append({"key": entry["key"], "label": entry["label"], "size": entry["capacity"], **started})
        except BaseException:
            await found.transport.close()
            raise
    answer = {
        "session": session,
        "name": found.server["name"],
        "host": found.server["address"],
        "point": found.point["point"],
        "vm": found.point["vm"],
        "consistency": found.point["consistency"],
        "disks": served,
    }
    return Restoring(answer, found.transport, None, report.events)


async def _open(
    config: EngineConfig,
    events: EventLog,
    kept: Found,
    session: str,
    disk: int,
    reads: bool,
) -> Restoring:
    server, transport, found = kept.server, kept.transport, kept.point
    entry = disk_of(found, disk)
    task = f"{found['vm']}:{entry['key']}"
    mover = await transport.call(
        "mover.start", step="r2", deadline=READY_DEADLINE * 2, session=session, task=task, role="restore"
    )
    control = await connect(config, events, server, step="r2", port=int(mover["port"]))
    try:
        await control.call("hello", step="r2", token=mover["token"])
        opened = await control.call(
            "restore.open", step="r2", deadline=STORE_DEADLINE, folder=found["folder"], disk=entry["key"], reads=reads
        )
    except BaseException:
        await control.close()
        raise
    answer = {
        "session": session,
        "name": server["name"],
        "host": server["address"],
        "port": opened["port"],
        "token": opened["token"],
        "size": opened["size"],
        "point": found["point"],
        "vm": found["vm"],
        "disk": entry["key"],
        "label": entry["label"],
        "consistency": found["consistency"],
    }
    return Restoring(answer, transport, control, events)
