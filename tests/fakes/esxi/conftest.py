# SPDX-License-Identifier: MIT
"""A lone host in this process, on a port that the kernel chose, with a disk of known content."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fakes.core.certificate import make
from fakes.esxi.connection import Limits
from fakes.esxi.journal import Journal
from fakes.esxi.lone import DATASTORE, DISK, VM, LoneStorage, TicketWindow
from fakes.esxi.server import EsxiHost

SIZE = 8 << 20


@dataclass
class Host:
    """A running host for tests."""

    address: tuple[str, int]
    host: EsxiHost
    image: Path
    journal_path: Path
    storage: LoneStorage
    path: str = f"[{DATASTORE}] {DISK}"
    vmx: str = f"[{DATASTORE}] {VM}/{VM}.vmx"

    def ticket(self, *, write: bool = False, ttl: float = 60.0) -> str:
        return TicketWindow(self.host.tickets).new(read_only=not write, ttl=ttl)

    def journal(self, event: str | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.journal_path.read_text().splitlines()]
        return [line for line in lines if event in (None, line["event"])]


class Background:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pki") / "esxi-1.pem"
    make(path, ["esxi-1", "127.0.0.1"])
    return path


@pytest.fixture
def limits() -> Limits:
    return Limits(authd=5.0, idle=5.0)


@pytest.fixture
def esxi(tmp_path: Path, certificate: Path, limits: Limits) -> Iterator[Host]:
    image = tmp_path / "disk.raw"
    image.write_bytes(random.Random(902).randbytes(SIZE))
    folder = tmp_path / "fabric"
    folder.mkdir()
    background = Background()
    storage = LoneStorage(folder, image=image, size=None)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()[:2]
    host = EsxiHost(
        name="esxi-1",
        address="127.0.0.1",
        certificate=certificate,
        fabric_folder=folder,
        limits=limits,
        journal=Journal(tmp_path / "journal.jsonl"),
        accounts={"root": "host-secret"},
    )
    background.run(storage.start())
    background.run(host.start(listener))
    try:
        yield Host(address, host, image, tmp_path / "journal.jsonl", storage)
    finally:
        background.run(host.stop())
        background.run(storage.stop())
        background.close()
