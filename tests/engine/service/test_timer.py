# SPDX-License-Identifier: MIT
"""The timer with a simulated clock: days pass in milliseconds; starts come once, in time, and survive trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from engine.errors import ConnectTimedOut
from engine.model.database import Database
from engine.model.schedule import to_ns
from engine.model.secrets import SecretBox
from engine.service.timer import LOOK, RETRY, Timer
from tests.engine.service.test_service import Site, recovery  # noqa: F401  (a fixture)
from tests.engine.waiting import until

BEGIN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class SimulatedClock:
    """Time that passes only while somebody waits; `end` is when the world stands still."""

    def __init__(self, end: datetime) -> None:
        self.time = BEGIN
        self.end = end
        self.over = asyncio.Event()
        self.longest = 0.0

    def now(self) -> datetime:
        return self.time

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        if event.is_set():
            return
        if seconds is None or self.time + timedelta(seconds=seconds) > self.end:
            self.over.set()
            await event.wait()
            return
        self.longest = max(self.longest, seconds)
        self.time += timedelta(seconds=seconds)
        await asyncio.sleep(0)


class World:
    """A timer over a real database."""

    def __init__(self, folder: Path, end: datetime) -> None:
        self.database = Database(f"sqlite:///{folder}/db.sqlite", SecretBox(folder / "key"))
        self.clock = SimulatedClock(end)
        self.started: list[tuple[str, datetime]] = []
        self.notes: list[str] = []
        self.running: set[str] = set()
        self.trouble = 0
        self.asked = 0
        self.timer = Timer(self._call, self._start, self.running.__contains__, self.notes.append, self.clock)

    def job(self, name: str, cron: str, **schedule: Any) -> None:
        self.database.job_book.create({"name": name, "vms": ["a"]})
        self.database.job_book.schedule(name, {"cron": cron, **schedule}, now=to_ns(BEGIN))

    async def _call(self, work: Callable[[Database], Any]) -> Any:
        self.asked += 1
        if self.trouble:
            self.trouble -= 1
            raise ConnectTimedOut("config-db:5432: timed out")
        return work(self.database)

    async def _start(self, job: str, session: str, at: str) -> None:
        assert session
        self.started.append((job, self.clock.now()))

    def live(self) -> None:
        """Lets the timer run until the end of time."""

        async def main() -> None:
            self.clock.over = asyncio.Event()
            running = asyncio.create_task(self.timer.run())
            await asyncio.wait_for(self.clock.over.wait(), 30)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        asyncio.run(main())
        self.database.close()


def hours(*numbers: float) -> list[datetime]:
    return [BEGIN + timedelta(hours=n) for n in numbers]


def test_starts_come_in_time_and_the_database_is_left_alone_between(tmp_path: Path) -> None:
    world = World(tmp_path, BEGIN + timedelta(days=2))
    world.job("daily", "0 22 * * *")
    world.job("often", "0 */12 * * *")
    world.database.job_book.create({"name": "off", "vms": ["a"]})
    world.database.job_book.schedule("off", {"cron": "* * * * *"}, now=to_ns(BEGIN))
    world.database.job_book.enable("off", False)
    world.live()
    assert [t for j, t in world.started if j == "daily"] == hours(10, 34)
    assert [t for j, t in world.started if j == "often"] == hours(12, 24, 36, 48)
    assert not world.notes and {j for j, _ in world.started} == {"daily", "often"}
    assert world.clock.longest <= LOOK and world.asked == 2 * (1 + 6)


def test_a_run_that_goes_on_is_not_started_again(tmp_path: Path) -> None:
    world = World(tmp_path, BEGIN + timedelta(hours=3))
    world.job("slow", "0 * * * *")
    world.running.add("slow")
    world.live()
    assert world.started == [] and len(world.notes) == 3 and "goes on" in world.notes[0]


def test_missed_while_the_service_was_down(tmp_path: Path) -> None:
    world = World(tmp_path, BEGIN + timedelta(days=3, minutes=5))
    world.job("skips", "0 22 * * *")
    world.job("catches-up", "0 22 * * *", missed="run-once")
    world.clock.time = BEGIN + timedelta(days=3)
    world.live()
    assert world.started == [("catches-up", BEGIN + timedelta(days=3))]
    assert [n.partition(":")[0] for n in world.notes] == ["catches-up", "skips"]
    assert "2 scheduled starts" in world.notes[0] and "3 scheduled starts" in world.notes[1]


def test_a_database_that_does_not_answer_is_asked_again(tmp_path: Path) -> None:
    world = World(tmp_path, BEGIN + timedelta(hours=2))
    world.job("hourly", "0 * * * *")
    world.trouble = 1
    world.live()
    assert [t for _, t in world.started] == hours(1, 2)
    assert RETRY < LOOK


def test_a_changed_schedule_is_seen_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        world.clock.over = asyncio.Event()
        running = asyncio.create_task(world.timer.run())
        await asyncio.wait_for(world.clock.over.wait(), 10)  # nothing is scheduled: it waits without an end
        assert world.asked == 2
        world.job("new", "30 12 * * *")
        world.timer.changed()
        await until(lambda: len(world.started) == 1, deadline=10)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    world = World(tmp_path, BEGIN + timedelta(hours=1))
    asyncio.run(main())
    assert world.started == [("new", BEGIN + timedelta(minutes=30))]


def test_a_scheduled_start_is_a_run_and_opens_no_connection(tmp_path: Path) -> None:
    import json

    async def main() -> None:
        site = Site(tmp_path)
        async with site.serving() as (service, _):
            yesterday = to_ns(datetime.now(UTC) - timedelta(days=1))
            service.database.job_book.schedule("quick", {"cron": "* * * * *", "missed": "run-once"}, now=yesterday)
            service.timer.changed()
            await until(lambda: any(s["state"] == "ended" for s in service.database.sessions()), deadline=30)
            (session,) = service.database.sessions()
            assert (session["subject"], session["result"]) == ("quick", "success")

    asyncio.run(main())
    events = [json.loads(line) for line in (tmp_path / "backup-server.jsonl").read_text().splitlines()]
    first = [e for e in events if e["kind"] == "step" and e["step"] == "1"]
    assert [e["phase"] for e in first] == ["begin", "end"] and first[0]["data"]["trigger"] == "schedule"
    assert [e for e in events if e["kind"] == "attempt" and e["step"] == "1"] == []
