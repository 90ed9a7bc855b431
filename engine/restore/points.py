# SPDX-License-Identifier: MIT
"""Finding restore points in the repositories that the Backup Service knows, and saying which are intact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.config import EngineConfig
from engine.errors import InputError, RemoteError, VadplabError
from engine.events import EventLog
from engine.rpc.client import Client
from engine.servers import connect

STORE_DEADLINE = 600.0
VERIFY_DEADLINE = 6 * 3600.0
DAMAGE = ("store.damaged", "store.format")


class PointUnknown(InputError):
    """No repository has that restore point."""

    code = "restore.point-unknown"
    advice = "List the restore points with `points list`."


class DiskUnknown(InputError):
    """The restore point has no such disk."""

    code = "restore.disk-unknown"
    advice = "Name a disk by its number (1 for `Hard disk 1`) or its key (2000); `points list` shows them."


@dataclass(slots=True)
class Found:
    """A restore point (`points.find`), the server that keeps it, and the connection to its Transport Service."""

    server: dict[str, Any]
    transport: Client
    point: dict[str, Any]


async def listed(config: EngineConfig, events: EventLog, servers: list[dict[str, Any]]) -> list[dict[str, Any]]:
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


async def find(
    config: EngineConfig,
    events: EventLog,
    servers: list[dict[str, Any]],
    point: str,
    vm: str | None,
    *,
    step: str | None,
) -> Found:
    """Asks every repository in turn; the connection to the one that has the point stays open.

    Raises:
        PointUnknown. ConnectError, RemoteError: a repository does not answer, or the point is damaged.
    """
    error: VadplabError = PointUnknown(f"no repository has the restore point {point}")
    for server in [s for s in servers if "repository" in s["roles"]]:
        transport = await connect(config, events, server, step=step)
        try:
            found = await transport.call("points.find", step=step, deadline=STORE_DEADLINE, point=point, vm=vm)
            return Found(server, transport, found)
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


def disk_of(point: dict[str, Any], disk: int) -> dict[str, Any]:
    """The manifest's entry of a disk, by number or key. Raises DiskUnknown."""
    disks: list[dict[str, Any]] = point.get("disks") or []
    for entry in disks:
        if entry["key"] == disk or entry["label"] == f"Hard disk {disk}":
            return entry
    known = ", ".join(f"{e['label']} ({e['key']})" for e in disks)
    raise DiskUnknown(f"{point['point']} has no disk {disk}; it has {known or point.get('error')}")


def is_damage(error: VadplabError) -> bool:
    """Whether an error says that data of a restore point is damaged."""
    return error.to_dict()["code"] in DAMAGE


async def what_is_intact(transport: Client, vm: str) -> str:
    """A sentence about the restore points of a VM on that repository, every byte of them read."""
    found = await transport.call("points.verify", deadline=VERIFY_DEADLINE, vm=vm)
    points = [p for one in found["vms"] for p in one["points"]]
    whole = [str(p["point"]) for p in points if p["intact"]]
    partly = [
        f"{p['point']} (disks {', '.join(map(str, p['intact_disks']))})"
        for p in points
        if not p["intact"] and p["intact_disks"]
    ]
    return f"Intact restore points of {vm}: {', '.join(whole) or 'none'}" + (
        f"; in part: {', '.join(partly)}." if partly else "."
    )
