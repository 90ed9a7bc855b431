# SPDX-License-Identifier: MIT
"""Step marks: when each step began and ended, by the engine's own step events.

A mark says when to look, never what happened: the invariants look at packets and journals between marks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lab.judge.evidence import Record


@dataclass(slots=True)
class Mark:
    """One passage through a step. `end` is None when the process ended inside it; `phase` is the last one seen."""

    step: str
    begin: int
    end: int | None = None
    phase: str = "begin"
    host: str = ""
    process: str = ""
    pid: int | None = None
    task: str | None = None
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def holds(self, utc: int) -> bool:
        """True when `utc` lies inside."""
        return self.begin <= utc and (self.end is None or utc <= self.end)

    def overlaps(self, first: int, last: int) -> bool:
        """True when the time from `first` to `last` touches it."""
        return last >= self.begin and (self.end is None or first <= self.end)


def step_marks(events: list[Record]) -> dict[str, list[Mark]]:
    """Marks by step id, in order of time. begin and end meet by step, process id and task."""
    found: dict[str, list[Mark]] = {}
    open_marks: dict[tuple[Any, ...], Mark] = {}
    for event in sorted(events, key=lambda e: int(e.get("utc", 0))):
        if event.get("kind") != "step" or not event.get("step"):
            continue
        key = (event["step"], event.get("host"), event.get("pid"), event.get("task"))
        phase, utc = str(event.get("phase")), int(event["utc"])
        mark = open_marks.get(key)
        if phase == "begin" or mark is None:
            mark = Mark(str(event["step"]), utc, host=str(event.get("host")), process=str(event.get("process")))
            mark.pid, mark.task = event.get("pid"), event.get("task")
            found.setdefault(mark.step, []).append(mark)
            open_marks[key] = mark
        mark.phase = phase
        mark.text = str(event.get("text") or mark.text)
        mark.data = {**mark.data, **(event.get("data") or {})}
        if phase != "begin":
            mark.end = utc
            open_marks.pop(key, None)
    return found


def passages(found: dict[str, list[Mark]], *steps: str) -> list[Mark]:
    """Marks of these steps that were really gone through, in order of time: those of a skipped step are left out."""
    every = [m for step in steps for m in found.get(step, []) if m.phase != "skipped"]
    return sorted(every, key=lambda m: m.begin)
