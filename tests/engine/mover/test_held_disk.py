# SPDX-License-Identifier: MIT
"""A disk that a proxy's mover holds is given back whatever happens: also when the task ends while it is being opened."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from engine.events import EventLog
from engine.modes.errors import WriteFailed
from engine.modes.opening import Opened, Steps
from engine.mover.background import background
from engine.mover.errors import NotReady, Stopped
from engine.mover.held_disk import HeldDisk
from tests.engine.waiting import until


class Disk:
    """Notes what is done with it; `refuses`: it cannot be given back."""

    def __init__(self, refuses: bool = False) -> None:
        self.calls: list[str] = []
        self._refuses = refuses

    def close(self) -> None:
        self.calls.append("closed")
        if self._refuses:
            raise WriteFailed("the disk stays attached")

    def stop(self) -> None:
        """As the pipeline that moves it."""
        self.calls.append("stopped")


def opened(disk: Disk) -> Opened:
    return Opened(disk, "hotadd", "esxi-1", None, [])


def log(path: Path | None = None) -> EventLog:
    return EventLog(path, host="proxy-1", process="data-mover")


def test_opened_once_and_taken_once() -> None:
    async def main() -> None:
        held, disk = HeldDisk(log()), Disk()
        with pytest.raises(NotReady):
            held.take()
        assert (await held.open(lambda: opened(disk), Steps())).disk is disk
        with pytest.raises(NotReady):
            await held.open(lambda: opened(Disk()), Steps())
        assert held.take().disk is disk
        with pytest.raises(NotReady):
            held.take()
        held.moved_by(disk)
        held.close()
        assert disk.calls == ["stopped", "closed"]

    asyncio.run(main())


def test_the_task_ends_while_the_disk_is_being_opened() -> None:
    async def main() -> None:
        held, disk = HeldDisk(log()), Disk(refuses=True)
        go = threading.Event()

        def opening() -> Opened:
            assert go.wait(10)
            return opened(disk)

        work = asyncio.create_task(held.open(opening, Steps(hotadd="r10b")))
        await asyncio.sleep(0)  # it has begun
        closing = background(held.close)
        await until(lambda: held._closed)
        assert not closing.done()  # the end waits for the disk, which is there all the same
        go.set()
        with pytest.raises(Stopped) as stopped:
            await work
        await closing
        assert stopped.value.step == "r10b" and disk.calls == ["closed"]

    asyncio.run(main())


def test_a_disk_that_cannot_be_given_back_is_a_note(tmp_path: Path) -> None:
    events = log(tmp_path / "events")

    async def main() -> None:
        held = HeldDisk(events)
        await held.open(lambda: opened(Disk(refuses=True)), Steps())
        held.close()

    asyncio.run(main())
    events.close()
    (note,) = (json.loads(line) for line in (tmp_path / "events").read_text().splitlines())
    assert (note["step"], note["data"]["code"]) == ("20b", "restore.write")
