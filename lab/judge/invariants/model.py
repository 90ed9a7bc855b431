# SPDX-License-Identifier: MIT
"""What an invariant is, what it looks at, and the words it answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lab.judge.evidence import Evidence, Record
from lab.judge.marks import Mark, passages
from lab.judge.verdict import Flow

HELD, BROKEN, NOT_APPLICABLE = "held", "broken", "not applicable"
MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Invariant:
    """What became of one invariant, why, and which evidence said so."""

    id: str
    state: str
    reason: str
    source: str

    def to_dict(self) -> dict[str, str]:
        """The JSON form."""
        return {"state": self.state, "reason": self.reason, "source": self.source}


@dataclass(frozen=True, slots=True)
class Scene:
    """What the invariants look at: the evidence, the judged flows, the step marks."""

    evidence: Evidence
    flows: list[Flow]
    marks: dict[str, list[Mark]]

    def vm_of(self, task: str | None, data: Mapping[str, Any]) -> str | None:
        """The VM that a task (`<vm>:<disk key>`) or a mark is about, where it names one."""
        if data.get("vm"):
            return str(data["vm"])
        named = [vm for vm in self.evidence.world.vms if task and (task == vm or task.startswith(f"{vm}:"))]
        return max(named, key=len, default=None)

    def marks_of(self, vm: str, *steps: str) -> list[Mark]:
        """Passages through these steps that are about `vm`, in order of time; one that names no VM is about all of them."""
        return [m for m in passages(self.marks, *steps) if self.vm_of(m.task, m.data) in (None, vm)]


def result(name: str, source: str, problems: list[str], held: str) -> Invariant:
    """Broken with every problem, or held with what was seen."""
    return Invariant(name, BROKEN if problems else HELD, "; ".join(problems) or held, source)


def unusable(name: str, source: str, evidence: Evidence) -> Invariant | None:
    """Absence proves nothing in a capture with holes: such an invariant can not be said to hold."""
    if evidence.capture.complete:
        return None
    return Invariant(name, NOT_APPLICABLE, not_complete(evidence), source)


def not_complete(evidence: Evidence) -> str:
    """Why an invariant that needs the whole capture can not be checked; `report` finds those invariants by it."""
    return f"the capture is not complete: {evidence.capture.reason}"


def first_seen(record: Record) -> int:
    """When the first packet of a TCP flow or of other packets was seen."""
    if record["kind"] == "other":
        return int(record["first"])
    if record["start"]:
        return int(record["start"])
    return int(record["activity"][0][0] if record["activity"] else record["end"])


def pair(record: Record, evidence: Evidence) -> str:
    """`linux-guest to backup-server:9392 (tcp)`."""
    what = record.get("protocol", "tcp") if record["kind"] == "other" else "tcp"
    port = f":{record['dport']}" if record["dport"] else ""
    return f"{evidence.world.name(str(record['src']))} to {evidence.world.name(str(record['dst']))}{port} ({what})"


def role(address: object, evidence: Evidence) -> str | None:
    """The role of the host with that address."""
    party = evidence.world.at(str(address))
    return party.role if party else None
