# SPDX-License-Identifier: MIT
"""Restore points, and the service's part of a restore: r1 asked for by the console, r2 a Data Mover starts on the repository.

The console then receives the disk from that mover (r3). The mover's control connection is the service's: it is held until the
console's own connection to the service ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.config import EngineConfig
from engine.errors import InputError, RemoteError, VadplabError
from engine.events import EventLog
from engine.processes import READY_DEADLINE
from engine.report import Reporter
from engine.rpc.client import Client
from engine.service.servers import connect

STORE_DEADLINE = 600.0


class PointUnknown(InputError):
    """No repository has that restore point."""

    code = "restore.point-unknown"
    advice = "List the restore points with `points list`."


class DiskUnknown(InputError):
    """The restore point has no such disk."""

    code = "restore.disk-unknown"
    advice = "Name a disk by its number (1 for `Hard disk 1`) or its key (2000); `points list` shows them."


@dataclass(slots=True)
class Restoring:
    """A restore that goes on: what the console needs, and the connections that keep the mover alive."""

    answer: dict[str, Any]
    transport: Client
    control: Client
    events: EventLog

    async def close(self) -> None:
        """Ends the mover."""
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
) -> Restoring:
    """Steps r1 and r2. Raises PointUnknown, DiskUnknown, ConnectError, RemoteError."""
    with report.step("r1", point=point, disk=disk):
        repositories = [s for s in servers if "repository" in s["roles"]]
    with report.step("r2") as result:
        error: VadplabError = PointUnknown(f"no repository has the restore point {point}")
        for server in repositories:
            transport = await connect(config, report.events, server, step="r2")
            try:
                found = await transport.call("points.find", step="r2", deadline=STORE_DEADLINE, point=point, vm=vm)
                result["repository"] = server["name"]
                return await _open(config, report.events, server, transport, session, found, disk)
            except RemoteError as exc:
                await transport.close()
                if exc.to_dict()["code"] != "store.not-found":
                    raise
                if "match" in exc.message:
                    error = PointUnknown(exc.message)
            except BaseException:
                await transport.close()
                raise
        raise error


async def _open(
    config: EngineConfig,
    events: EventLog,
    server: dict[str, Any],
    transport: Client,
    session: str,
    found: dict[str, Any],
    disk: int,
) -> Restoring:
    entry = _disk(found, disk)
    task = f"{found['vm']}:{entry['key']}"
    mover = await transport.call(
        "mover.start", step="r2", deadline=READY_DEADLINE * 2, session=session, task=task, role="restore"
    )
    control = await connect(config, events, server, step="r2", port=int(mover["port"]))
    try:
        await control.call("hello", step="r2", token=mover["token"])
        opened = await control.call(
            "restore.open", step="r2", deadline=STORE_DEADLINE, folder=found["folder"], disk=entry["key"]
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


def _disk(point: dict[str, Any], disk: int) -> dict[str, Any]:
    disks: list[dict[str, Any]] = point.get("disks") or []
    for entry in disks:
        if entry["key"] == disk or entry["label"] == f"Hard disk {disk}":
            return entry
    known = ", ".join(f"{e['label']} ({e['key']})" for e in disks)
    raise DiskUnknown(f"{point['point']} has no disk {disk}; it has {known or point.get('error')}")
