# SPDX-License-Identifier: MIT
"""Data Mover processes of a proxy and a repository on loopback, and how a Backup Manager speaks to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine.dialer import Dialer
from engine.events import EventLog
from engine.rpc.client import Client
from engine.rpc.identity import Identity
from engine.store.points import Points, new_point_id
from tests.engine.pki import Pki


@dataclass
class World:
    """Folder, certificates, repository."""

    folder: Path
    pki: Pki
    points: Points
    ports: tuple[int, int] = (0, 0)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """More of a machine's configuration, by its name."""

    @classmethod
    def make(cls, folder: Path) -> World:
        """A new world in `folder`."""
        (folder / "pki").mkdir()
        (folder / "repository").mkdir()
        return cls(folder, Pki(folder / "pki"), Points(folder / "repository"))

    @property
    def manager(self) -> Identity:
        """The backup server's identity."""
        return self.pki.identity("backup-server")

    def config(self, name: str) -> Path:
        """The configuration file of a machine."""
        identity = self.pki.identity(name)
        path = self.folder / f"{name}.yaml"
        settings: dict[str, Any] = {
            "name": name,
            "listen": "127.0.0.1",
            "identity": {"certificate": str(identity.certificate), "ca": str(identity.ca)},
            "events": str(self.folder / f"{name}.jsonl"),
            "resolver": {"esxi-1": "127.0.0.1"},
            "mover_ports": list(self.ports),
        }
        if name.startswith("repository"):
            settings["repository"] = str(self.folder / "repository")
        path.write_text(yaml.safe_dump(settings | self.settings.get(name, {})))
        return path

    def events(self, name: str) -> list[dict[str, Any]]:
        """What that machine's processes wrote."""
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def dialer(self) -> Dialer:
        """The manager's dialer."""
        return Dialer(EventLog(None, host="backup-server", process="test"))

    @contextlib.asynccontextmanager
    async def mover(self, name: str, role: str) -> AsyncIterator[Mover]:
        """A mover process with its control connection, after hello; it must be gone soon after its connection."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "engine.mover", "--config", str(self.config(name)),
            "--session", "s1", "--task", "t1", "--role", role,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 15))
            client = await self.control(name, ready["port"])
            mover = Mover(name, process, client, ready)
            try:
                await client.call("hello", token=ready["token"])
                yield mover
            finally:
                await client.close()
                await asyncio.wait_for(process.wait(), 10)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def control(self, name: str, port: int) -> Client:
        """A control connection to a mover."""
        connection = await self.dialer().dial("127.0.0.1", port, step="6", name=name)
        return await Client.open(connection, self.manager, expect=name)

    def begin(self, job: str = "demo", vm: str = "vm1", parent: str | None = None) -> tuple[str, Path]:
        """A restore point in the making: id and folder."""
        point = new_point_id()
        kind: Any = "incremental" if parent else "full"
        return point, self.points.begin(job, vm, point, kind=kind, parent=parent)

    def commit(
        self,
        point: str,
        stored: dict[str, Any],
        *,
        job: str = "demo",
        vm: str = "vm1",
        vmx: str = "",
        parent: str | None = None,
    ) -> Path:
        """Makes a point with one disk visible; `parent`: the id of the point below an incremental one."""
        return self.points.commit(job, vm, point, manifest(point, stored, job=job, vm=vm, vmx=vmx, parent=parent))


@dataclass
class Mover:
    """A running mover."""

    name: str
    process: asyncio.subprocess.Process
    client: Client
    ready: dict[str, Any]

    async def call(self, method: str, **params: Any) -> Any:
        """Calls a method of the mover."""
        return await self.client.call(method, deadline=60.0, **params)


async def link(listener: Mover, connector: Mover) -> None:
    """Step 7 between two movers."""
    found = await listener.call("data.listen")
    await connector.call("data.connect", host="127.0.0.1", port=found["port"], token=found["token"], name=listener.name)


def manifest(
    point: str, stored: dict[str, Any], *, job: str, vm: str, vmx: str = "", parent: str | None = None
) -> dict[str, Any]:
    """A manifest for one disk with key 2000."""
    return {
        "schema": "vadplab.point/2",
        "job": job,
        "vm": {"name": vm, "uuid": "4211"},
        "point": point,
        "created": "2026-11-25T07:15:00Z",
        "kind": "incremental" if parent else "full",
        "parent": parent,
        "consistency": "crash",
        "session": "s1",
        "snapshot": {"moref": "snapshot-1", "name": "backup", "id": 1},
        "vmx": vmx,
        "disks": [
            {
                "key": 2000,
                "label": "Hard disk 1",
                "path": "[datastore1] vm1/vm1.vmdk",
                "capacity": stored["size"],
                "file": stored["file"],
                "stored": stored["stored"],
                "digests": stored["digests"],
                "root": stored["root"],
                "blocks": stored["blocks"],
                "blocks_root": stored["blocks_root"],
                "parent_root": stored["parent_root"],
            }
        ],
    }
