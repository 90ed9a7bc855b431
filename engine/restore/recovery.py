# SPDX-License-Identifier: MIT
"""Instant recovery for the console that asked for it: r1 the call, r2 the repository starts a server for each disk (r12)."""

from __future__ import annotations

from typing import Any

from engine.config import EngineConfig
from engine.report import Reporter
from engine.restore.points import STORE_DEADLINE, PointUnknown, disk_of, find
from engine.restore.served import Served


async def start(
    config: EngineConfig,
    report: Reporter,
    servers: list[dict[str, Any]],
    session: str,
    *,
    point: str,
    vm: str | None,
    disks: list[int],
    port: int | None,
) -> Served:
    """A disk server starts on the repository for each disk (all of them: no `disks`).

    `port`: of the first disk, the next ones follow; None: free mover ports.

    Raises:
        PointUnknown, DiskUnknown, ConnectError, RemoteError.
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
    return Served(answer, found.transport, None, report.events)
