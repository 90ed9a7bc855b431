# SPDX-License-Identifier: MIT
"""Machines of the engine on loopback for tests: an identity, a configuration file, and connections between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from engine import config as configuration
from engine.config import EngineConfig
from engine.dialer import Dialer
from engine.events import EventLog
from engine.rpc.client import Client
from tests.engine.pki import Pki

REPOSITORY = Path(__file__).resolve().parents[2]


class Machines:
    """Configuration files in one folder; every machine listens on 127.0.0.1 and on ports that the kernel chooses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = Pki(folder)

    def path(self, name: str, **fields: Any) -> Path:
        """The configuration file of a machine."""
        self.pki.identity(name)
        document = {
            "name": name,
            "identity": {"certificate": f"{name}.pem", "ca": "ca.pem"},
            "events": f"{name}.jsonl",
            "resolver": {},
            **fields,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def config(self, name: str, **fields: Any) -> EngineConfig:
        """The configuration of a machine."""
        return configuration.load(self.path(name, **fields))

    async def client(self, port: int, *, to: str, by: str = "console") -> Client:
        """A connection to a server of machine `to`, by machine `by`."""
        dialer = Dialer(EventLog(None, host=by, process="test"))
        connection = await dialer.dial("127.0.0.1", port, step=None, name=to)
        return await Client.open(connection, self.pki.identity(by), expect=to)
