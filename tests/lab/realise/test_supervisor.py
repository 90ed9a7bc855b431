# SPDX-License-Identifier: MIT
"""The supervisor's order at the end, without a lab."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from lab.realise.folders import LabFolder
from lab.realise.launch import Launch
from lab.realise.live import Reporter
from lab.realise.supervisor import Supervisor
from lab.topology import find, load


@dataclass(eq=False)
class Ending:
    """Stands for a process: says when it is asked to end, and ends a little later."""

    name: str
    stage: int
    order: list[str]
    code: int | None = None
    host: str | None = None

    async def terminate(self, timeout: float) -> int:
        self.order.append(f"stop {self.name}")
        await asyncio.sleep(0)
        self.code = 0
        self.order.append(f"{self.name} ended")
        return 0


def test_stages_end_last_first_and_closers_before(tmp_path: Path) -> None:
    order: list[str] = []
    reports: list[dict[str, Any]] = []

    async def closer() -> None:
        order.append("closer")

    async def broken() -> None:
        raise RuntimeError("broken on purpose")

    async def live() -> None:
        processes = SimpleNamespace(all=[])
        supervisor = Supervisor(
            LabFolder(tmp_path), Launch(find(None)), load(find(None)),
            cast(Any, processes), cast(Any, None), "root", reports.append,
        )  # fmt: skip
        supervisor.on_close(closer)
        supervisor.on_close(broken)
        for stage, names in enumerate((["storage"], ["esxi-1", "esxi-2"], ["guest"])):
            processes.all += [Ending(name, stage, order) for name in names]
            supervisor.report(names[0])
        processes.all.append(Ending("gone", 0, order, code=1))
        await supervisor.close()

    asyncio.run(live())
    assert [report["done"] for report in reports] == ["storage", "esxi-1", "guest"]
    assert order == [
        "closer",
        "stop guest", "guest ended",
        "stop esxi-1", "stop esxi-2", "esxi-1 ended", "esxi-2 ended",
        "stop storage", "storage ended",
    ]  # fmt: skip


def test_launch_survives_its_journey() -> None:
    launch = Launch(Path("/t.yaml"), policy=Path("/p.yaml"), vcsim="go", capture="full", world=False, options={"a": 1})
    assert Launch.from_json(launch.to_json()) == launch
    assert Launch.from_json(Launch(Path("/t")).to_json()) == Launch(Path("/t"))


def test_reporter_is_silent_once_closed(tmp_path: Path) -> None:
    read, write = os.pipe()
    say = Reporter(write)
    say({"done": "links"})
    say.close()
    reused = os.open(tmp_path / "innocent", os.O_WRONLY | os.O_CREAT)
    assert reused == write  # the number belongs to somebody else now
    say({"done": "late"})
    say.close()
    os.close(reused)
    assert os.read(read, 100) == b'{"done": "links"}\n'
    os.close(read)
    assert (tmp_path / "innocent").read_text() == ""
