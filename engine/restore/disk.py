# SPDX-License-Identifier: MIT
"""A disk of a restore point for the console that asked for it: r1 the call, r2 a Data Mover starts on the repository.

The console then receives the disk from that mover (r3). The mover's control connection is the service's.
"""

from __future__ import annotations

from typing import Any

from engine.config import EngineConfig
from engine.events import EventLog
from engine.processes import READY_DEADLINE
from engine.report import Reporter
from engine.restore.points import STORE_DEADLINE, Found, disk_of, find
from engine.restore.served import Served
from engine.servers import connect


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
) -> Served:
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


async def _open(
    config: EngineConfig,
    events: EventLog,
    kept: Found,
    session: str,
    disk: int,
    reads: bool,
) -> Served:
    server, transport, found = kept.server, kept.transport, kept.point
    entry = disk_of(found, disk)
    task = f"{found['vm']}:{entry['key']}"
    mover = await transport.call(
        "mover.start", step="r2", deadline=READY_DEADLINE * 2, session=session, task=task, role="reader"
    )
    control = await connect(config, events, server, step="r2", port=int(mover["port"]))
    try:
        await control.call("hello", step="r2", token=mover["token"])
        opened = await control.call(
            "reader.open", step="r2", deadline=STORE_DEADLINE, folder=found["folder"], disk=entry["key"], reads=reads
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
    return Served(answer, transport, control, events)
