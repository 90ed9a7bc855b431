# SPDX-License-Identifier: MIT
"""A process in place of a Backup Manager. The job's name chooses what it does.

`quick` succeeds; `slow` goes on until SIGTERM and then delivers a failed result; `dies` stores something pending and is
killed; `mute` ends without a result; `orphan` succeeds but leaves a snapshot pending.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from engine import config as configuration
from engine.processes import ready
from engine.rpc.client import Client

PENDING = {"linux-vm": {"guest": "10.0.0.9", "snapshot": True}}


async def manage(path: Path, session: str, port: int) -> int:
    config = configuration.load(path)
    connection = await config.dialer(config.event_log("stub")).dial("127.0.0.1", port, step="3", name=config.name)
    client = await Client.open(connection, config.make_identity(), expect=config.name)
    ready({"session": session})
    found = await client.call("manager.job", session=session)
    job = found["job"]
    result: dict[str, Any] = {
        "run": session,
        "job": job["name"],
        "mode": job["mode"],
        "result": "success",
        "error": None,
    }
    task = {"id": "linux-vm:2000", "vm": "linux-vm", "mode": job["mode"]}
    plan = await client.call("resources.acquire", deadline=None, session=session, tasks=[task])
    result["plan"] = plan
    result["dead"] = (await client.call("manager.dead", session=session, sessions=["one", session, "foreign"]))["dead"]
    await client.call("manager.progress", session=session, items=[{"kind": "note", "step": "3", "text": job["name"]}])
    match job["name"]:
        case "slow":
            stopped = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
            await client.call(
                "manager.progress", session=session, items=[{"kind": "note", "step": "3", "text": "slow"}]
            )
            await asyncio.wait_for(stopped.wait(), 60)
            result |= {"result": "failed", "error": {"code": "job.stopped", "message": "stopped"}}
        case "dies":
            await client.call("manager.pending", session=session, pending=PENDING)
            os.kill(os.getpid(), signal.SIGKILL)
        case "mute":
            return 0
        case "orphan":
            await client.call("manager.pending", session=session, pending={"linux-vm": {"snapshot": True}})
    await client.call("manager.learned", session=session, fields={"vm": "linux-vm", "repository": "repository-1"})
    await client.call("manager.result", session=session, document=result)
    await client.close()
    return 0


def main(argv: list[str]) -> int:
    """The same arguments as the real one."""
    parser = argparse.ArgumentParser()
    for name in ("--config", "--session", "--service-port"):
        parser.add_argument(name, required=True)
    arguments = parser.parse_args(argv)
    return asyncio.run(manage(Path(arguments.config), arguments.session, int(arguments.service_port)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
