# SPDX-License-Identifier: MIT
"""The broker: slots are held and given back; tasks of a lost proxy get slots before runs that hold none; waiting is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.rpc.server import Call, Peer
from engine.scheduler import NoResource, Resource, Task
from engine.service import service as service_module
from engine.service.broker import Broker
from engine.service.service import _while_queued

NBD = frozenset({"nbd"})
PROXIES = [Resource("p1", 1, NBD), Resource("p2", 1, NBD)]
REPOSITORIES = [Resource("r1", 9)]
TASK = Task("vm:2000", "vm", "nbd")


def test_a_lost_task_comes_before_runs_that_wait_and_all_is_given_back() -> None:
    async def main() -> None:
        broker = Broker()
        await broker.acquire("one", [TASK], PROXIES, REPOSITORIES, {})
        await broker.acquire("two", [TASK], PROXIES, REPOSITORIES, {})
        waiting = asyncio.create_task(broker.acquire("three", [TASK], PROXIES, REPOSITORIES, {}))
        await asyncio.sleep(0)
        moving = asyncio.create_task(broker.reassign("one", [TASK], PROXIES, ["p1"]))
        await asyncio.sleep(0)
        assert not waiting.done() and not moving.done()
        broker.release("two")
        found = await asyncio.wait_for(moving, 5)
        assert (found.proxies, found.slots) == ({"vm:2000": "p2"}, {"p2": 1})
        assert broker.load() == {"p1": 1, "p2": 1, "r1": 1} and not waiting.done()
        again = await broker.reassign("one", [TASK], PROXIES, ["p1"])
        assert again.slots == {} and broker.load()["p2"] == 1  # on slots that it holds, tasks take turns
        broker.release("one")
        await asyncio.wait_for(waiting, 5)
        broker.release("three")
        assert not broker.load()

    asyncio.run(main())


def test_no_other_proxy_and_a_run_that_stops_waiting() -> None:
    async def main() -> None:
        broker = Broker()
        await broker.acquire("one", [TASK], PROXIES, REPOSITORIES, {})
        with pytest.raises(NoResource):
            await broker.reassign("one", [TASK], PROXIES, ["p1", "p2"])
        await broker.acquire("two", [TASK], PROXIES, REPOSITORIES, {})
        given_up = asyncio.create_task(broker.reassign("one", [TASK], PROXIES, ["p1"]))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        broker.release("two")
        await asyncio.wait_for(broker.acquire("three", [TASK], PROXIES, REPOSITORIES, {}), 5)

    asyncio.run(main())


def test_who_waits_in_the_queue_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "QUEUED", 0.01)

    async def main() -> None:
        told: list[dict[str, Any]] = []
        free = asyncio.Event()

        async def send(message: dict[str, Any]) -> None:
            told.append(message["progress"])
            if len(told) == 3:
                free.set()

        async def work() -> dict[str, Any]:
            await free.wait()
            return {"slots": {}}

        call = Call("resources.acquire", {}, Peer("backup-server", ("127.0.0.1", 1)), send)
        assert await asyncio.wait_for(_while_queued(call, work()), 5) == {"slots": {}}
        assert [t["queued"] for t in told[:3]] == pytest.approx([0.01, 0.02, 0.03])
        free.clear()
        given_up = asyncio.create_task(_while_queued(call, work()))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
