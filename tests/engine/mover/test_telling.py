# SPDX-License-Identifier: MIT
"""A mover tells its steps: in order, all before the answer, also of a call that fails; and it gives signs of life."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConnectTimedOut
from engine.mover import telling
from engine.mover.telling import TellingEvents, told


def test_every_step_mark_is_told_before_the_answer(tmp_path: Path) -> None:
    async def main() -> None:
        events = TellingEvents(tmp_path / "events", host="proxy-1", process="data-mover", session="s", task="t")
        heard: list[dict[str, Any]] = []

        async def progress(item: dict[str, Any]) -> None:
            await asyncio.sleep(0)
            heard.append(item)

        def blocking() -> None:
            for step in ("18", "19", "20c"):
                events.step(step, "begin", f"step {step}")
                events.note("no step", step=step)
                events.step(step, "end")

        async def good() -> str:
            await asyncio.to_thread(blocking)
            return "answer"

        async def bad() -> None:
            await asyncio.to_thread(events.step, "18", "begin")
            await asyncio.to_thread(events.step, "18", "failed", "timed out")
            raise ConnectTimedOut("timed out")

        assert await told(events, progress, good()) == "answer"
        written = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
        marks = [(e["step"], e["phase"], e["text"]) for e in written if e["kind"] == "step"]
        assert [(h["step"], h["phase"], h["text"]) for h in heard] == marks and len(marks) == 6
        with pytest.raises(ConnectTimedOut):
            await told(events, progress, bad())
        assert [(h["step"], h["phase"]) for h in heard[6:]] == [("18", "begin"), ("18", "failed")]
        events.step("21", "begin")
        assert len(heard) == 8  # nobody listens between calls
        events.close()

    asyncio.run(main())


def test_signs_of_life_and_a_listener_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "SIGN_OF_LIFE", 0.01)

    async def main() -> None:
        events = TellingEvents(None, host="proxy-1", process="data-mover")
        enough = asyncio.Event()
        heard: list[dict[str, Any]] = []

        async def progress(item: dict[str, Any]) -> None:
            heard.append(item)
            if len(heard) > 3:
                enough.set()

        async def slow() -> None:
            events.step("18", "begin")
            await asyncio.wait_for(enough.wait(), 5)

        await told(events, progress, slow())
        assert {"step": "18"} in heard

        async def gone(item: dict[str, Any]) -> None:
            raise ConnectionResetError

        async def quick() -> int:
            events.step("19", "begin")
            return 1

        assert await told(events, gone, quick()) == 1

    asyncio.run(main())
