# SPDX-License-Identifier: MIT
"""Lives of the engine's processes, by the events that they wrote: who wrote last when, and who died inside a step."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from lab.judge.evidence import Record
from lab.judge.marks import passages, step_marks

WRITING_NS = 2_000_000_000
"""How long a process may need to write an event after what it is about, on a machine that is very busy."""


def last_event(events: list[Record], host: str, pid: int | None) -> int:
    """When that process wrote its last event; 0 when it wrote none."""
    return max((int(e["utc"]) for e in events if (e.get("host"), e.get("pid")) == (host, pid)), default=0)


def died_inside(events: list[Record], host: str, steps: Iterable[str], utc: int) -> str:
    """Who on that host was in one of these steps at that time and wrote nothing afterwards, in words; empty when nobody."""
    for mark in passages(step_marks(events), *steps):
        if mark.host != host or mark.end is not None or mark.begin > utc:
            continue
        last = last_event(events, host, mark.pid)
        if last <= utc + WRITING_NS:
            return f"{name(mark.process, host, mark.pid)} died in step {mark.step}: {silence(last)}"
    return ""


def name(process: str, host: str, pid: int | None) -> str:
    """`data-mover on proxy-1, pid 1117,`."""
    return f"{process} on {host}, pid {pid},"


def silence(last: int) -> str:
    """Since when a process is silent, in UTC."""
    moment = datetime.fromtimestamp(last / 1e9, UTC)
    return f"its last event is of {moment:%H:%M:%S}.{moment.microsecond // 1000:03} UTC"
