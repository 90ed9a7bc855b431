# SPDX-License-Identifier: MIT
"""`python -m engine.service --config FILE`: the Backup Service."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from engine import config as configuration
from engine.errors import InputError
from engine.model.connect import place_of
from engine.model.database import Database
from engine.model.secrets import SecretBox
from engine.processes import ready, reported, until_signal
from engine.service.jobs import MODULE
from engine.service.service import BackupService


def main(argv: list[str]) -> int:
    """Runs until SIGTERM; prints `{"port": N, "rest_port": N}` when it answers."""
    parser = argparse.ArgumentParser(prog="engine.service", description="Backup Service")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--manager-module", default=MODULE, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    return reported(lambda: asyncio.run(serve(arguments.config, arguments.manager_module)))


async def serve(path: Path, manager_module: str) -> int:
    """Starts the service of the configuration file at `path` and waits for the end."""
    config = configuration.load(path)
    if config.service is None:
        raise InputError(f"configuration {path}: `service` is missing")
    os.umask(0o077)  # the database and the key are the service's own
    events = config.event_log("service")
    database = Database(place_of(config), SecretBox(config.service.secrets_key), dialer=config.dialer(events))
    service = BackupService(config, path, database, manager_module=manager_module)
    try:
        port = await service.start()
        ready({"port": port} if service.rest_port is None else {"port": port, "rest_port": service.rest_port})
        await until_signal()
    finally:
        await service.close()
        events.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
