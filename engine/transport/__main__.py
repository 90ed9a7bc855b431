# SPDX-License-Identifier: MIT
"""`python -m engine.transport --config FILE`: the Transport Service of one machine."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from engine import config as configuration
from engine.processes import ready, reported, until_signal
from engine.transport.movers import MODULE, Movers
from engine.transport.service import TransportService


def main(argv: list[str]) -> int:
    """Runs until SIGTERM; prints `{"port": N}` when it answers."""
    parser = argparse.ArgumentParser(prog="engine.transport", description="Transport Service")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--mover-module", default=MODULE, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    return reported(lambda: asyncio.run(serve(arguments.config, arguments.mover_module)))


async def serve(path: Path, mover_module: str) -> int:
    """Starts the service of the configuration file at `path` and waits for the end."""
    config = configuration.load(path)
    service = TransportService(config, Movers(path, mover_module))
    port = await service.start()
    try:
        ready({"port": port})
        await until_signal()
    finally:
        await service.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
