# SPDX-License-Identifier: MIT
"""The real peers: a snapshot in the making is waited for before its commit; progress arrives in order, thinned, before the result."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from engine.errors import VadplabError
from engine.manager.links import ServiceLink
from engine.rpc.client import Client
from engine.rpc.server import Call, Server
from engine.vsphere import Snapshot, VSphere
from engine.vsphere.link import VSphereLink
from tests.engine.machines import Machines
from tests.engine.manager.world import vm_info


class SlowVCenter:
    """A vCenter whose snapshot exists a while after it was asked for."""

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.found: list[Snapshot] = []

    def create_snapshot(self, vm: str, name: str, description: str, *, step: str, timeout: float) -> Snapshot:
        self.asked.set()
        assert self.go_on.wait(10)
        self.found.append(Snapshot("snapshot-1", vm, name, 1, description))
        return self.found[0]

    def own_snapshots(self, mark: str, *, step: str, vm_name: str) -> list[Snapshot]:
        return list(self.found)

    def remove_snapshot(self, moref: str, *, step: str, timeout: float) -> None:
        self.found.clear()


def test_stop_during_a_snapshot_waits_for_it_and_commits_it() -> None:
    async def main() -> None:
        vcenter = SlowVCenter()
        link = VSphereLink(cast(VSphere, vcenter))
        asking = asyncio.create_task(link.create_snapshot(vm_info("a", 1), "n", "mark", timeout=10))
        await asyncio.to_thread(vcenter.asked.wait, 10)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        settling = asyncio.create_task(link.settle())
        await asyncio.sleep(0)
        assert not settling.done()
        vcenter.go_on.set()
        await asyncio.wait_for(settling, 10)
        assert await link.commit_snapshots("a", "mark", timeout=10) == 1
        assert vcenter.found == []

    asyncio.run(main())


def test_progress_arrives_in_order_before_the_result(tmp_path: Path) -> None:
    async def main() -> None:
        machines = Machines(tmp_path)
        seen: list[Any] = []

        async def handle(call: Call) -> Any:
            if call.method == "manager.progress":
                seen.extend(call.params["items"])
            elif call.method == "manager.result":
                seen.append("result")
            return {}

        server = Server(machines.pki.identity("backup-server"), handle)
        port = await server.start("127.0.0.1", 0)

        async def connect() -> Client:
            return await machines.client(port, to="backup-server", by="backup-server")

        link = ServiceLink(connect, "s")
        with pytest.raises(VadplabError):
            await link.release()
        link.progress({"kind": "step", "n": 0})  # before there is a connection
        await link.job()
        for n in range(1, 200):
            link.progress({"kind": "step", "n": n})
            link.progress({"kind": "task", "task": "a", "read": n})
        await link.result({})
        await link.close()
        await server.close()
        assert seen[-1] == "result" and [s["n"] for s in seen[:-1] if s["kind"] == "step"] == list(range(200))
        moved = [s["read"] for s in seen[:-1] if s["kind"] == "task"]
        assert moved == sorted(moved) and moved[-1] == 199 and len(moved) < 199

    asyncio.run(main())
