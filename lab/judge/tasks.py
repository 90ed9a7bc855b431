# SPDX-License-Identifier: MIT
"""The tasks of a job run, one a disk: how each was read, by the engine's events, and what its connections moved, by packets.

*Modes*: those that might be tried, best first. *Failover*: from one of them to the next, with the reason. *Read*: `cbt`
(vCenter's record of changes), `compare` (block by block against the restore point below) or `all`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from engine.steps import READING
from lab.judge.evidence import Record
from lab.judge.marks import passages, step_marks
from lab.judge.verdict import Flow

NFC_PORT, SAN_PORT = 902, 3260


@dataclass(frozen=True, slots=True)
class Moved:
    """Payload bytes of one task: read on 902 and on 3260, and what the data connection of step 7 took to the repository."""

    nfc: int
    san: int
    data: int


def moved_by(task: str, flows: list[Flow]) -> Moved | None:
    """What the task's own connections moved; None when none of them was measured."""
    mine = [f for f in flows if f.task == task and f.joined and f.bytes_source]
    if not mine:
        return None
    nfc = sum(_received(f) for f in mine if f.port == NFC_PORT)
    san = sum(_received(f) for f in mine if f.port == SAN_PORT)
    return Moved(nfc, san, sum(_stored(f) for f in mine if f.step == "7"))


def _stored(flow: Flow) -> int:
    """Bytes of a data connection towards the repository, whichever side opened it (D2: the repository)."""
    seen = flow.joined is not None and flow.joined.packets is not None
    if flow.row == "D2":
        return flow.payload_received if seen else flow.received
    return flow.payload_sent if seen else flow.sent


def _received(flow: Flow) -> int:
    """Bytes of a connection towards its initiator: payload by sequence numbers, else IP bytes of connection tracking."""
    return flow.payload_received if flow.joined and flow.joined.packets else flow.received


@dataclass(slots=True)
class TaskRecord:
    """One task (`<vm>:<disk key>`). `mode` is None when no disk was opened; `bytes_read` as its Data Mover counts."""

    task: str
    proxy: str | None = None
    modes: list[str] = field(default_factory=list)
    mode: str | None = None
    step: str | None = None
    failovers: list[dict[str, Any]] = field(default_factory=list)
    read: str | None = None
    reason: str | None = None
    bytes_read: int | None = None
    moved: Moved | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `bytes_902`, `bytes_3260`, `bytes_data` are null where nothing was measured."""
        document = asdict(self)
        document.pop("moved")
        moved = asdict(self.moved) if self.moved else {}
        return {
            **document,
            "bytes_902": moved.get("nfc"),
            "bytes_3260": moved.get("san"),
            "bytes_data": moved.get("data"),
        }


def records(events: list[Record], flows: list[Flow]) -> list[TaskRecord]:
    """Every task that reached step 17 or later, by name."""
    found = step_marks(events)
    tasks: dict[str, TaskRecord] = {}
    for mark in passages(found, "17", *READING):
        if mark.task is None:
            continue
        one = tasks.setdefault(mark.task, TaskRecord(mark.task))
        if mark.step == "17":
            # A task that is tried again on another proxy is chosen for again; the last choice counts.
            one.modes = [
                str(mode) for mode in mark.data.get("modes") or ([mark.data["mode"]] if "mode" in mark.data else [])
            ]
            one.read, one.reason = mark.data.get("read"), mark.data.get("reason")
            continue
        one.proxy, one.step = mark.host, mark.step
        one.mode = str(mark.data.get("mode") or mark.step) if mark.phase != "failed" or one.mode is None else one.mode
        if mark.phase == "end" and mark.data.get("bytes") is not None:
            one.bytes_read = int(mark.data["bytes"])
    for event in sorted(events, key=lambda e: int(e.get("utc", 0))):
        data, known = event.get("data"), tasks.get(str(event.get("task")))
        if known and event.get("kind") == "note" and isinstance(data, dict) and {"mode", "to"} <= set(data):
            told = {"mode": data["mode"], "to": data["to"], "code": data.get("code"), "reason": event.get("text")}
            known.failovers.append(told)
    for each in tasks.values():
        each.moved = moved_by(each.task, flows)
    return [tasks[name] for name in sorted(tasks)]
