# SPDX-License-Identifier: MIT
"""`python -m engine.manager --config FILE --session ID --service-port N`: one job run, started by the Backup Service.

Job and secrets come over the loopback connection to the service, never as arguments. SIGTERM stops the job: guests are thawed,
snapshots committed, then the process ends with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from engine import config as configuration
from engine.manager.links import RealPeers, ServiceLink
from engine.manager.sequence import BackupSequence
from engine.processes import ready, reported
from engine.rpc.client import Client

LOOPBACK = "127.0.0.1"


def main(argv: list[str]) -> int:
    """Runs the job; 0 when it succeeded (with or without warnings), 1 when it failed."""
    parser = argparse.ArgumentParser(prog="engine.manager", description="Backup Manager of one job run")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--session", required=True)
    parser.add_argument("--service-port", type=int, required=True)
    arguments = parser.parse_args(argv)
    work = manage(arguments.config, arguments.session, arguments.service_port)
    return reported(lambda: asyncio.run(work))


async def manage(path: Path, session: str, port: int) -> int:
    """Performs the sequence, then delivers its result document to the Backup Service."""
    config = configuration.load(path)
    identity = config.make_identity()
    events = config.event_log("manager", session=session)

    async def connect() -> Client:
        connection = await config.dialer(events).dial(LOOPBACK, port, step="3", name=config.name)
        return await Client.open(connection, identity, expect=config.name, events=events)

    service = ServiceLink(connect, session)
    try:
        sequence = BackupSequence(session, RealPeers(config, identity, events, session, service), events)
        job = asyncio.create_task(sequence.run())
        stop_once(job)
        ready({"session": session})
        result = await job
        await service.result(result)
    finally:
        await service.close()
        events.close()
    return 1 if result["result"] == "failed" else 0


def stop_once(job: asyncio.Task[dict[str, object]]) -> None:
    """SIGTERM and SIGINT cancel the job once; later ones do not disturb its clean-up."""
    loop = asyncio.get_running_loop()
    stopped: list[bool] = []

    def stop() -> None:
        if not stopped:
            stopped.append(True)
            job.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
