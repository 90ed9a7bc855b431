# SPDX-License-Identifier: MIT
"""The report of a run: every flow judged, the invariants, what is wrong, and the exit code. Documents in `docs/json.md`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from firewall_rules.needs import kind_of
from lab.judge import invariants, steps, tasks, verdict
from lab.judge.evidence import Evidence
from lab.judge.invariants import BROKEN, Invariant
from lab.judge.invariants.model import not_complete
from lab.judge.join import join
from lab.judge.steps import StepRecord
from lab.judge.verdict import Flow

REPORT_SCHEMA = "vadplab.report/1"
FLOWS_SCHEMA = "vadplab.flows/1"
PRECEDENCE = (2, 3, 4, 1, 0)
"""Exit codes from strongest to weakest: bad input, nothing checked, witnesses disagree, failed, done."""


def combine(*codes: int) -> int:
    """The exit code of several results together; a code outside the table counts as 1."""
    known = [code if code in PRECEDENCE else 1 for code in codes]
    return min(known, key=PRECEDENCE.index, default=0)


@dataclass(slots=True)
class Report:
    """Everything judged about one run. `flows` holds the attempts in order, then the rows that nobody attempted."""

    evidence: Evidence
    flows: list[Flow]
    foreign: list[Flow]
    steps: list[StepRecord]
    invariants: list[Invariant]
    disagreements: list[str] = field(default_factory=list)

    @property
    def checked(self) -> int:
        """Attempts for which a verdict could be given."""
        return sum(f.attempted and f.verdict.value != "could not check" for f in self.flows)

    @property
    def inconsistent(self) -> list[str]:
        """Every disagreement between witnesses, flow by flow, then rule by rule."""
        return [f"{_name(f)}: {text}" for f in self.flows for text in f.disagreements] + self.disagreements

    @property
    def broken(self) -> list[Invariant]:
        """Invariants that did not hold."""
        return [i for i in self.invariants if i.state == BROKEN]

    @property
    def exit_code(self) -> int:
        """0 consistent; 3 nothing, or not everything, could be checked; 4 witnesses disagree; 1 an invariant is broken."""
        return {"consistent": 0, "nothing checked": 3, "partly checked": 3, "inconsistent": 4, "broken": 1}[self.result]

    @property
    def result(self) -> str:
        """`consistent`, `nothing checked`, `inconsistent`, `broken`, or `partly checked`: lost packets, and nothing worse."""
        if not self.checked:
            return "nothing checked"
        if self.inconsistent:
            return "inconsistent"
        if self.broken:
            return "broken"
        return "consistent" if self.evidence.capture.complete else "partly checked"

    @property
    def unchecked(self) -> list[str]:
        """Invariants that need the whole capture, when it has holes."""
        return [i.id for i in self.invariants if i.reason == not_complete(self.evidence)]

    def problems(self) -> list[dict[str, str]]:
        """What is wrong, strongest first; each with a stable code."""
        found = []
        if not self.checked:
            found.append({"code": "run.nothing-checked", "message": "no connection attempt could be judged"})
        if not self.evidence.capture.complete:
            without = f"; not applicable for that: {', '.join(self.unchecked)}" if self.unchecked else ""
            found.append({"code": "run.packets-lost", "message": not_complete(self.evidence) + without})
        found += [{"code": "run.inconsistent", "message": text} for text in self.inconsistent]
        found += [{"code": "invariant.broken", "message": f"{i.id}: {i.reason}"} for i in self.broken]
        return found

    def to_report(self) -> dict[str, Any]:
        """report.json."""
        evidence = self.evidence
        return {
            "schema": REPORT_SCHEMA,
            **self._head(),
            "began": evidence.began,
            "ended": evidence.ended,
            "checked": self.checked,
            "verdicts": dict(Counter(f.verdict.value for f in self.flows)),
            "capture": self._capture(),
            "problems": self.problems(),
            "invariants": {i.id: i.to_dict() for i in self.invariants},
            "rules": self._rules(),
            "foreign": len(self.foreign) + len(evidence.others),
        }

    def to_flows(self) -> dict[str, Any]:
        """flows.json, and what `vadplab flows --json` prints."""
        return {
            "schema": FLOWS_SCHEMA,
            **self._head(),
            "steps": [s.to_dict() for s in self.steps],
            "tasks": [t.to_dict() for t in tasks.records(self.evidence.events, self.flows)],
            "flows": [verdict.to_dict(f) for f in self.flows],
            "foreign": [_foreign_dict(f) for f in self.foreign] + [self._datagrams(o) for o in self.evidence.others],
            "invariants": {i.id: i.state for i in self.invariants},
            "capture": self._capture(),
            "problems": self.problems(),
        }

    def _head(self) -> dict[str, Any]:
        evidence = self.evidence
        return {
            "run": evidence.run,
            "kind": evidence.kind,
            "session": evidence.session,
            "result": self.result,
            "exit_code": self.exit_code,
        }

    def _capture(self) -> dict[str, Any]:
        return {
            "complete": self.evidence.capture.complete,
            "reason": self.evidence.capture.reason,
            "not_applicable": self.unchecked,
        }

    def _rules(self) -> list[dict[str, Any]]:
        logged = Counter(str(r["prefix"]) for r in self.evidence.log)
        used = Counter(f.rule for f in self.flows if f.attempted)
        rows = dict(self.evidence.rules.rows_of_all_rules())
        return [
            {
                "rule": rule,
                "row": rows.get(rule),
                "counted": self.evidence.counted(rule),
                "logged": logged.get(rule, 0),
                "flows": used.get(rule, 0),
            }
            for rule in sorted({*self.evidence.after, *logged, *rows})
        ]

    def _datagrams(self, record: dict[str, Any]) -> dict[str, Any]:
        name = self.evidence.world.name
        return {
            "protocol": record["protocol"],
            "initiator": name(str(record["src"])),
            "responder": name(str(record["dst"])),
            "port": record["dport"],
            "icmp": record["icmp"],
            "start": record["first"],
            "packets": record["packets"],
            "verdict": "allowed" if record["outgoing"] else "timed out",
            "rule": None,
            "row": None,
            "symptom": "forwarded or sent by the router" if record["outgoing"] else "not forwarded",
        }


def build(evidence: Evidence) -> Report:
    """Judges a run: joins the observers, gives every attempt its verdict, checks the invariants."""
    joined = join(evidence)
    flows = [verdict.judge(j, number, evidence) for number, j in enumerate(joined.flows, 1)]
    foreign = [verdict.judge(j, number, evidence) for number, j in enumerate(joined.foreign, len(flows) + 1)]
    foreign_rules = {f.rule for f in foreign if f.rule}
    attempted = {f.row for f in flows}
    number = len(flows) + len(foreign)
    for row in evidence.matrix.rows:
        if row.id not in attempted and any(kind_of(step) == evidence.kind for step in row.opens):
            number += 1
            flows.append(verdict.not_attempted(row, number, evidence, foreign_rules))
    return Report(
        evidence=evidence,
        flows=flows,
        foreign=foreign,
        steps=steps.records(evidence, flows, joined.local),
        invariants=invariants.check(evidence, flows),
        disagreements=verdict.counters_agree(flows, foreign, evidence),
    )


def _name(flow: Flow) -> str:
    return f"flow {flow.number} ({flow.initiator} to {flow.responder}:{flow.port}, step {flow.step or '-'})"


def _foreign_dict(flow: Flow) -> dict[str, Any]:
    full = verdict.to_dict(flow)
    keep = ("flow", "protocol", "initiator", "responder", "port", "local", "remote", "start", "verdict", "decided_by")
    return {**{k: full[k] for k in keep}, **{k: full[k] for k in ("rule", "row", "predicted", "symptom", "bytes")}}
