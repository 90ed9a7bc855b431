# SPDX-License-Identifier: MIT
"""The steps of a run in the order of the sequence, local ones too, each with the evidence that it happened.

A step with connections points to its flows. A local step (2, 4, 9, 12, 14, 17; 3 on a local database) opens none: its
evidence is the process that performed it or what a fake recorded between its marks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.steps import RESCAN_STEPS, RESTORE_STEPS, STEPS, Step
from lab.judge.evidence import Evidence, Record
from lab.judge.join import Attempt
from lab.judge.marks import Mark, step_marks
from lab.judge.verdict import Flow

DONE, FAILED, SKIPPED, INTERRUPTED, NOT_REACHED = "done", "failed", "skipped", "interrupted", "not reached"
_BY_KIND: dict[str, tuple[Step, ...]] = {"job": STEPS, "restore": RESTORE_STEPS, "rescan": RESCAN_STEPS}
_PHASES = {"end": DONE, "failed": FAILED, "skipped": SKIPPED, "begin": INTERRUPTED}


@dataclass(slots=True)
class StepRecord:
    """One step of this run. `flows` are numbers of attempts that opened or used a connection for it."""

    step: Step
    status: str
    begin: int | None = None
    end: int | None = None
    text: str = ""
    flows: list[int] = field(default_factory=list)
    evidence: list[dict[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "step": self.step.id,
            "phase": self.step.phase,
            "title": self.step.title,
            "local": self.step.local,
            "status": self.status,
            "begin": self.begin,
            "end": self.end,
            "text": self.text,
            "flows": self.flows,
            "evidence": self.evidence,
        }


def records(evidence: Evidence, flows: list[Flow], local: list[Attempt]) -> list[StepRecord]:
    """One record for each step of this kind of run, in order."""
    found = step_marks(evidence.events)
    steps = _BY_KIND.get(evidence.kind, STEPS)
    return [_record(step, found.get(step.id, []), evidence, flows, local) for step in steps]


def _record(
    step: Step, passages: list[Mark], evidence: Evidence, flows: list[Flow], local: list[Attempt]
) -> StepRecord:
    mine = [f for f in flows if f.attempted and step.id in f.steps]
    record = StepRecord(step, _status(passages, mine), flows=[f.number for f in mine])
    begins = [*(m.begin for m in passages), *(f.start for f in mine if f.start and not passages)]
    if begins:
        record.begin = min(begins)
        record.end = max((m.end for m in passages if m.end), default=None)
    record.text = next((m.text for m in passages if m.phase in ("failed", "skipped") and m.text), "") or next(
        (m.text for m in passages if m.text), ""
    )
    record.evidence = [*_processes(passages), *_loopback(step.id, local), *_journals(step.id, passages, evidence)]
    return record


def _status(passages: list[Mark], mine: list[Flow]) -> str:
    if not passages:
        if not mine:
            return NOT_REACHED
        return DONE if any(f.verdict.value == "allowed" for f in mine) else FAILED
    states = {_PHASES.get(m.phase, INTERRUPTED) for m in passages}
    for worst in (FAILED, INTERRUPTED, DONE):
        if worst in states:
            return worst
    return SKIPPED


def _processes(passages: list[Mark]) -> list[dict[str, str]]:
    seen = dict.fromkeys((m.host, m.process, m.pid) for m in passages if m.phase != "skipped")
    return [_say("process", f"{process} on {host}, pid {pid}") for host, process, pid in seen]


def _loopback(step: str, local: list[Attempt]) -> list[dict[str, str]]:
    return [
        _say("event", f"loopback inside {a.host}: {a.remote[0]}:{a.remote[1]} {a.outcome or 'no outcome'}")
        for a in local
        if step in a.steps
    ]


def _journals(step: str, passages: list[Mark], evidence: Evidence) -> list[dict[str, str]]:
    """What the fakes recorded between this step's marks."""
    if not passages:
        return []
    if step in ("8", "9", "12", "15", "18", "22", "i2"):
        return _gateway(step, passages, evidence.gateway or [])
    if step in ("19", "20c"):
        events = [(host, e) for host, entries in evidence.esxi.items() for e in entries if _within(e, passages)]
        return [_say(f"{host} journal", f"{e.get('event')} {e.get('path') or ''}".strip()) for host, e in events][:8]
    if step in ("13", "16"):
        records = [(vm, r) for vm, every in (evidence.freezes or {}).items() for r in every if _within(r, passages)]
        return [_say(f"guest {vm}", f"{r['event']} {r.get('mount')} by {r.get('by')}") for vm, r in records]
    return []


_GATEWAY_PREFIX = {"15": ("CreateSnapshot",), "22": ("RemoveSnapshot", "RemoveAllSnapshots"), "18": ("Login", "Nfc")}


def _gateway(step: str, passages: list[Mark], journal: list[Record]) -> list[dict[str, str]]:
    prefixes = _GATEWAY_PREFIX.get(step, ("",))
    counts: dict[str, int] = {}
    for entry in journal:
        method = str(entry.get("method"))
        if _within(entry, passages) and method.startswith(prefixes):
            counts[method] = counts.get(method, 0) + 1
    return [_say("vcenter journal", f"{method} × {count}") for method, count in sorted(counts.items())]


def _within(entry: Record, passages: list[Mark]) -> bool:
    return any(m.holds(int(entry["utc"])) for m in passages)


def _say(source: str, text: str) -> dict[str, str]:
    return {"source": source, "text": text}
