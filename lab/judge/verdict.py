# SPDX-License-Identifier: MIT
"""The verdict of one flow: five witnesses, what each says, and whether they agree.

Two questions are asked of every attempt. What did the *path* (the firewall) do with it? `predicted` (the evaluator),
`counter` (the rule's counter and log) and `packets` answer that. How did it *end*? `packets`, `event` (the engine) and
`socket` (the kernel's connection tracking) answer that. They differ when the firewall let a SYN through and the
responder refused it: allowed on the path, refused in the end. The verdict is the end, as the packets show it.

A witness always says something: a verdict, or *not applicable* with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from firewall_rules.model import Row
from firewall_rules.needs import kind_of
from firewall_rules.verdict import Verdict
from lab.judge.evidence import Evidence, Prediction, Record
from lab.judge.join import Attempt, Joined
from lab.judge.lives import WRITING_NS, died_inside, last_event, name, silence
from lab.judge.rules import BUILT_IN

NOT_APPLICABLE = "not applicable"
ADMIN_PROHIBITED = frozenset({9, 10, 13})
"""ICMP destination unreachable codes by which a firewall says that it refuses (RFC 1812 section 5.2.7.1)."""

CLOCK_NS = 1_000_000
"""Time stamps of the kernel's log are cut to microseconds and may come from another layer than the counters' reading."""

ENDING_NS = 1_000_000_000
"""A connection with packets this near to the end of the run was still going on when the observers stopped, one by one."""

MAX_HEADERS = 120
"""IP and TCP headers with all their options."""

_OUTCOMES = {
    "open": Verdict.ALLOWED,
    "refused": Verdict.REFUSED,
    "prohibited": Verdict.PROHIBITED,
    "unreachable": Verdict.PROHIBITED,
    "timed out": Verdict.TIMED_OUT,
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the packets show: on the path, in the end, and who decided (`firewall`, `responder`, `nobody`, `none`)."""

    path: Verdict
    end: Verdict
    by: str
    text: str
    proven: bool = False
    """Shown by packets that are there; otherwise by the absence of others."""


@dataclass(slots=True)
class Flow:
    """One judged connection attempt, or one row that nobody attempted."""

    number: int
    step: str | None
    steps: list[str]
    row: str | None
    rule: str | None
    initiator: str
    responder: str
    port: int
    predicted: str
    verdict: Verdict
    protocol: str = "tcp"
    key: tuple[str, int, str, int] | None = None
    start: int | None = None
    ended: int | None = None
    task: str | None = None
    decided_by: str = "none"
    symptom: str = ""
    matched: str = ""
    sent: int = 0
    received: int = 0
    payload_sent: int = 0
    payload_received: int = 0
    bytes_source: str = ""
    witnesses: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    disagreements: list[str] = field(default_factory=list)
    joined: Joined | None = None

    @property
    def attempted(self) -> bool:
        """Whether there was an attempt at all."""
        return self.joined is not None

    @property
    def consistent(self) -> bool:
        """Whether no witness contradicts another."""
        return not self.disagreements

    def say(self, witness: str, verdict: str, reason: str = "") -> None:
        """Records what a witness says; a reason is required for *not applicable* and useful otherwise."""
        self.witnesses[witness] = verdict
        if reason:
            self.reasons[witness] = reason


def seen(packets: Record | None) -> Seen:
    """What the packets of one attempt show."""
    if packets is None:
        return Seen(Verdict.NOT_ATTEMPTED, Verdict.NOT_ATTEMPTED, "none", "no SYN in the capture")
    by_router = next((r for r in packets["rst"] if r["by"] == "router"), None)
    by_responder = next((r for r in packets["rst"] if r["by"] == "responder"), None)
    icmp = next((e for e in packets["icmp"] if e["type"] == 3), None)
    if packets["synack_out"]:
        cut = f"; cut later: {packets['stopped']} data packets were not forwarded" if packets["stopped"] > 0 else ""
        cut = "; cut later by a reset of the router" if by_router else cut
        return Seen(Verdict.ALLOWED, Verdict.ALLOWED, "firewall", f"SYN forwarded, SYN-ACK came back{cut}", True)
    if packets["start"] is None:
        return Seen(Verdict.ALLOWED, Verdict.ALLOWED, "none", "open before the capture began", True)
    if not packets["syn_out"]:
        return _stopped(by_router, icmp)
    if by_responder:
        return Seen(Verdict.ALLOWED, Verdict.REFUSED, "responder", "SYN forwarded, the responder answered with a reset")
    if by_router:
        return Seen(Verdict.REFUSED, Verdict.REFUSED, "firewall", "the router answered with a reset of its own")
    if icmp:
        return Seen(Verdict.ALLOWED, Verdict.PROHIBITED, "responder", f"SYN forwarded, ICMP 3/{icmp['code']} came back")
    if packets["synack_in"]:
        return Seen(Verdict.TIMED_OUT, Verdict.TIMED_OUT, "firewall", "the SYN-ACK was not forwarded")
    return Seen(Verdict.ALLOWED, Verdict.TIMED_OUT, "nobody", "SYN forwarded, nothing came back")


def _stopped(by_router: Record | None, icmp: Record | None) -> Seen:
    if by_router:
        return Seen(Verdict.REFUSED, Verdict.REFUSED, "firewall", "SYN not forwarded, the router answered with a reset")
    if icmp and icmp["code"] in ADMIN_PROHIBITED:
        text = f"SYN not forwarded, the router answered ICMP 3/{icmp['code']}"
        return Seen(Verdict.PROHIBITED, Verdict.PROHIBITED, "firewall", text)
    if icmp:
        text = f"SYN not forwarded: no next hop (ICMP 3/{icmp['code']})"
        return Seen(Verdict.ALLOWED, Verdict.PROHIBITED, "nobody", text)
    return Seen(Verdict.TIMED_OUT, Verdict.TIMED_OUT, "firewall", "SYN not forwarded, no answer")


def judge(joined: Joined, number: int, evidence: Evidence) -> Flow:
    """The verdict of one attempt."""
    src, _, dst, dport = joined.key
    attempt = joined.attempt
    prediction = evidence.rules.predict(src, dst, "tcp", dport, joined.start)
    sight = seen(joined.packets)
    flow = Flow(
        number=number,
        step=attempt.step if attempt else None,
        steps=attempt.steps if attempt else [],
        row=None,
        rule=_rule(joined, prediction),
        initiator=evidence.world.name(src),
        responder=evidence.world.name(dst),
        port=dport,
        predicted=prediction.verdict.value,
        verdict=sight.end,
        key=joined.key,
        start=joined.start,
        ended=joined.packets["end"] if joined.packets else None,
        task=attempt.task if attempt else None,
        decided_by=sight.by,
        symptom=sight.text,
        matched=joined.matched,
        joined=joined,
    )
    _row(flow, prediction, evidence)
    _bytes(flow, joined, evidence.ended, evidence.capture.complete)
    known = list(flow.disagreements)
    _witnesses(flow, joined, sight, prediction, evidence)
    if flow.disagreements != known and not (sight.proven or evidence.capture.complete):
        # The packets that the others speak of may be the lost ones: their absence contradicts nobody.
        flow.disagreements = known
        _witnesses(flow, replace(joined, packets=None), seen(None), prediction, evidence)
    if attempt is None:
        _opener(flow, evidence)
    return flow


def _opener(flow: Flow, evidence: Evidence) -> None:
    """Says of a connection without an event who died before it could write one (a library's own: written after the SYN)."""
    opens = next((row.opens for row in evidence.matrix.rows if row.id == flow.row), ())
    if flow.start and (died := died_inside(evidence.events, flow.initiator, opens, flow.start)):
        flow.symptom += f"; {died}"


def _rule(joined: Joined, prediction: Prediction) -> str:
    """The rule that decided: what the log says of the last SYN, else what the evaluator expects."""
    return str(joined.log[-1]["prefix"]) if joined.log else prediction.rule


def _row(flow: Flow, prediction: Prediction, evidence: Evidence) -> None:
    """The row, from packets and rule; then whether the row knows the step."""
    assert flow.key is not None
    initiator, responder = evidence.world.at(flow.key[0]), evidence.world.at(flow.key[2])
    rows: tuple[Row, ...] = ()
    if initiator and responder:
        rows = evidence.matrix.find([initiator.role], [responder.role], flow.protocol, flow.port)
    named = evidence.rules.row_of(flow.rule) if flow.rule else prediction.row
    if named and named in {r.id for r in rows}:
        flow.row = named
    elif named and rows:
        flow.row = rows[0].id
        ids = ", ".join(r.id for r in rows)
        flow.disagreements.append(f"rule {flow.rule} stands for row {named}, but the packets belong to {ids}")
    elif rows:
        in_run = [r for r in rows if r.opens]
        flow.row = (in_run or list(rows))[0].id
    if flow.joined is None or flow.joined.attempt is None:
        return
    row = next((r for r in rows if r.id == flow.row), None)
    if row is None:
        flow.disagreements.append("no row of the matrix describes this connection")
        return
    for step in flow.steps:
        if step not in row.steps:
            flow.disagreements.append(f"row {row.id} does not list step {step}")


def _bytes(flow: Flow, joined: Joined, ended: int, complete: bool) -> None:
    """IP bytes of connection tracking, held against the payload by sequence numbers."""
    packets, tracking = joined.packets, joined.tracking
    if packets:
        flow.payload_sent, flow.payload_received = packets["sent"], packets["received"]
        flow.sent, flow.received, flow.bytes_source = packets["sent"], packets["received"], "sequence numbers"
    if not tracking or not (tracking["packets_orig"] or tracking["packets_reply"]):
        return
    flow.sent, flow.received, flow.bytes_source = tracking["bytes_orig"], tracking["bytes_reply"], "connection tracking"
    if not packets or not packets["start"]:
        return
    headers = (tracking["packets_orig"] + tracking["packets_reply"]) * MAX_HEADERS
    tracked_bytes, payload = flow.sent + flow.received, flow.payload_sent + flow.payload_received
    exact = complete and not packets["retransmits"] and packets["stopped"] <= 0 and packets["end"] < ended - ENDING_NS
    if tracked_bytes < payload or (exact and tracked_bytes > payload + headers):
        flow.disagreements.append(f"connection tracking counted {tracked_bytes} IP bytes, the payload was {payload}")


def _witnesses(flow: Flow, joined: Joined, sight: Seen, prediction: Prediction, evidence: Evidence) -> None:
    if blind := _blind(joined, sight, evidence):
        flow.verdict = Verdict.COULD_NOT_CHECK
        flow.say("packets", NOT_APPLICABLE, blind)
    else:
        flow.say("packets", sight.end.value, sight.text)
    _event(flow, joined, sight, evidence)
    _counter(flow, joined, sight, evidence)
    _socket(flow, joined, sight, evidence)
    judged = flow.witnesses["packets"] != NOT_APPLICABLE
    if judged and joined.packets is not None and prediction.before is sight.path:
        flow.predicted = sight.path.value  # the rules changed at that instant, and the older ones met the packet
    if judged and joined.packets is not None and flow.predicted != sight.path.value:
        flow.disagreements.append(f"predicted {flow.predicted}, the packets show {sight.path.value}: {sight.text}")


def _blind(joined: Joined, sight: Seen, evidence: Evidence) -> str:
    """Why the packets say nothing about this attempt; empty when they do."""
    if joined.packets is None and not evidence.capture.complete:
        return f"the capture is not complete: {evidence.capture.reason}"
    if sight.end is not Verdict.ALLOWED and joined.attempt and _cut_short(joined.start, joined.attempt, evidence):
        return "the recording ended before the connection was open"
    return ""


def _cut_short(start: int, attempt: Attempt, evidence: Evidence) -> bool:
    """Whether the recording ended during the attempt, or before it: a process may outlive the run that it belonged to."""
    return start > evidence.ended - ENDING_NS and (attempt.done is None or attempt.done > evidence.ended)


def _event(flow: Flow, joined: Joined, sight: Seen, evidence: Evidence) -> None:
    attempt = joined.attempt
    if attempt is None:
        flow.say("event", NOT_APPLICABLE, "no event: a foreign connection")
        return
    if attempt.outcome is None:
        _without_outcome(flow, attempt, joined.packets, evidence)
        return
    said = _OUTCOMES.get(attempt.outcome)
    if said is None:
        flow.say("event", NOT_APPLICABLE, f"the engine reported {attempt.outcome!r}, which is no end of a connect")
        return
    if flow.witnesses["packets"] == NOT_APPLICABLE:
        flow.say("event", said.value)
        return
    if sight.by == "none" and attempt.outcome == "unreachable":
        # The initiator's own routing table refused: nothing was sent, and nothing had to be seen.
        flow.say("event", Verdict.NOT_ATTEMPTED.value, "no route: no SYN left the machine")
        return
    flow.say("event", said.value)
    if said is not sight.end:
        flow.disagreements.append(f"the engine says {said.value}, the packets show {sight.end.value}: {sight.text}")


def _without_outcome(flow: Flow, attempt: Attempt, packets: Record | None, evidence: Evidence) -> None:
    """A process that was killed could not write the outcome; one that lived on after the answer must have."""
    who, last = name(attempt.process, attempt.host, attempt.pid), last_event(evidence.events, attempt.host, attempt.pid)
    answers = [int(r["utc"]) for r in packets["rst"]] + [int(packets["synack_out"] or 0)] if packets else []
    answered = min(filter(None, answers), default=None)
    if answered is not None and last > answered + WRITING_NS:
        text = f"{who} wrote no outcome, but lived on for {(last - answered) / 1e6:.0f} ms after the answer to its SYN"
        flow.say("event", Verdict.COULD_NOT_CHECK.value, text)
        flow.disagreements.append(text)
    else:
        flow.say("event", NOT_APPLICABLE, f"{who} ended before the outcome was known: {silence(last)}")


def _counter(flow: Flow, joined: Joined, sight: Seen, evidence: Evidence) -> None:
    """The rule's log line for this SYN, and that its counter moved at all. (`counters_agree` compares the sums.)"""
    if joined.packets is None:
        if joined.log:
            said = evidence.rules.verdict_of(str(joined.log[-1]["prefix"]))
            flow.say("counter", said.value if said else NOT_APPLICABLE, f"logged by {flow.rule}")
            if flow.witnesses["packets"] != NOT_APPLICABLE:
                flow.disagreements.append(f"rule {flow.rule} logged a packet that the capture does not have")
        else:
            flow.say("counter", NOT_APPLICABLE, "no SYN reached the router")
        return
    if joined.packets["start"] is None:
        flow.say("counter", NOT_APPLICABLE, "the SYN came before the recording began")
        return
    if not joined.log:
        if evidence.log_lost:
            flow.say("counter", NOT_APPLICABLE, f"the firewall's log lost {evidence.log_lost} records")
        else:
            flow.say("counter", Verdict.NOT_ATTEMPTED.value, "no rule logged this SYN")
            flow.disagreements.append("the capture has a SYN that no rule logged")
        return
    said = evidence.rules.verdict_of(flow.rule or "")
    if said is None:
        flow.say("counter", NOT_APPLICABLE, f"rule {flow.rule} is not one of this run's")
        flow.disagreements.append(f"the log names rule {flow.rule}, which was not in force")
        return
    counted = evidence.counted(flow.rule or "")
    flow.say("counter", said.value, f"rule {flow.rule} logged {len(joined.log)}, its counter moved by {counted}")
    if counted is not None and counted < len(joined.log):
        flow.disagreements.append(f"rule {flow.rule} logged {len(joined.log)} packets but counted {counted}")
    if said is not sight.path:
        flow.disagreements.append(f"rule {flow.rule} says {said.value}, the packets show {sight.path.value}")


def _socket(flow: Flow, joined: Joined, sight: Seen, evidence: Evidence) -> None:
    tracking = joined.tracking
    if tracking is None:
        reason = ""
        if joined.packets is None:
            reason = flow.reasons["packets"] if flow.verdict is Verdict.COULD_NOT_CHECK else "no SYN reached the router"
        elif sight.path is not Verdict.ALLOWED or (sight.by == "nobody" and not joined.packets["syn_out"]):
            reason = "the kernel keeps no connection for a packet that the firewall stopped"
        elif evidence.tracking_lost:
            reason = f"connection tracking lost {evidence.tracking_lost} events"
        elif joined.packets["start"] is None:
            reason = "the connection is older than the recording"
        if reason:
            flow.say("socket", NOT_APPLICABLE, reason)
        else:
            flow.say("socket", Verdict.NOT_ATTEMPTED.value, "the kernel tracked no such connection")
            flow.disagreements.append("packets were forwarded, but the kernel tracked no such connection")
        return
    said = tracked(tracking)
    unfinished = joined.attempt is None or joined.attempt.outcome is None
    if said is not sight.end and unfinished and joined.start > evidence.ended - ENDING_NS:
        flow.say("socket", NOT_APPLICABLE, "the recording ended while the connection was being opened")
        return
    marked = evidence.rules.rule_of_mark(int(tracking["mark"])) if tracking.get("mark") else None
    if marked and joined.log and marked != flow.rule:
        flow.disagreements.append(f"the connection carries the mark of rule {marked}, the log names {flow.rule}")
    flow.say("socket", said.value, "connection tracking: " + " ".join(tracking.get("states") or ["-"]))
    if flow.witnesses["packets"] != NOT_APPLICABLE and said is not sight.end:
        flow.disagreements.append(f"connection tracking says {said.value}, the packets show {sight.end.value}")


def tracked(record: Record) -> Verdict:
    """How a connection ended, by its conntrack states."""
    states = set(record.get("states") or [])
    if states & {"SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT"}:
        return Verdict.ALLOWED
    return Verdict.REFUSED if "CLOSE" in states else Verdict.TIMED_OUT


def counters_agree(flows: list[Flow], foreign: list[Flow], evidence: Evidence) -> list[str]:
    """Rules whose counter and log differ over the whole run: each is a disagreement of its own.

    Rules count and log the same packets, so the sums are equal as long as the log lost nothing. Records from the moments
    in which the counters were being read may be on either side.
    """
    if evidence.log_lost:
        return []
    wrong = []
    for rule in sorted(set(evidence.after) | {str(r["prefix"]) for r in evidence.log}):
        counted = evidence.counted(rule)
        if counted is None or rule in BUILT_IN:
            continue
        mine = [int(r["utc"]) for r in evidence.log if r["prefix"] == rule]
        sure = sum(_surely_between(utc, evidence) for utc in mine)
        if not sure <= counted <= len(mine):
            wrong.append(f"rule {rule} counted {counted} packets and logged {sure}")
    return wrong + _unseen(flows, foreign, evidence)


def _surely_between(utc: int, evidence: Evidence) -> bool:
    start, end = evidence.counted_from, evidence.counted_to
    return (start is None or utc > start[1] + CLOCK_NS) and (end is None or utc < end[0] - CLOCK_NS)


def _unseen(flows: list[Flow], foreign: list[Flow], evidence: Evidence) -> list[str]:
    """Log records about packets that the capture does not have."""
    if not evidence.capture.complete:
        return []
    known = {id(r) for f in [*flows, *foreign] if f.joined for r in f.joined.log}
    others = {(str(o["src"]), str(o["dst"])) for o in evidence.others}
    wrong = []
    for record in evidence.log:
        inside = evidence.began <= int(record["utc"]) <= evidence.ended and record["prefix"] not in BUILT_IN
        if inside and id(record) not in known and (record["src"], record["dst"]) not in others:
            ends = f"{record['src']}:{record['sport']} > {record['dst']}:{record['dport']}"
            wrong.append(f"rule {record['prefix']} logged {ends}, which the capture does not have")
    return wrong


def not_attempted(row: Row, number: int, evidence: Evidence, foreign_rules: set[str]) -> Flow:
    """The entry of a row that nobody attempted, with what the evaluator would have said."""
    world = evidence.world
    initiators, responders = world.with_role(row.initiators), world.with_role(row.responders)
    pairs = [(one.address, other.address) for one in initiators for other in responders]
    words = [evidence.rules.predict(*pair, row.protocol.parts[0], row.ports[0].first, evidence.began) for pair in pairs]
    prediction = words[0] if len({(word.verdict, word.rule) for word in words}) == 1 else None
    nothing = Verdict.NOT_ATTEMPTED.value
    flow = Flow(
        number=number,
        step=next((s for s in row.opens if kind_of(s) == evidence.kind), None),
        steps=[s for s in row.steps if kind_of(s) == evidence.kind],
        row=row.id,
        rule=prediction.rule if prediction else None,
        initiator=", ".join(p.name for p in initiators) or " or ".join(row.initiators),
        responder=", ".join(p.name for p in responders) or " or ".join(row.responders),
        port=row.ports[0].first,
        predicted=prediction.verdict.value if prediction else Verdict.COULD_NOT_CHECK.value,
        verdict=Verdict.NOT_ATTEMPTED,
        protocol=row.protocol.value,
        symptom=row.condition,
    )
    if prediction is None:
        differ = "it differs between the hosts of these roles" if words else "no host of this world has that role"
        flow.reasons["predicted"] = differ
    for witness in ("event", "packets", "socket"):
        flow.say(witness, nothing)
    flow.say("counter", nothing)
    counted = evidence.counted(flow.rule) if flow.rule else None
    if counted and prediction and prediction.row == row.id and flow.rule not in foreign_rules:
        flow.say("counter", prediction.verdict.value, f"the counter of {flow.rule} moved by {counted}")
        flow.disagreements.append(f"rule {flow.rule} counted {counted} packets, but nobody attempted row {row.id}")
    return flow


def to_dict(flow: Flow) -> dict[str, Any]:
    """The flow in `flows.json` (`docs/json.md`)."""
    key = flow.key
    return {
        "flow": flow.number,
        "step": flow.step,
        "steps": flow.steps,
        "row": flow.row,
        "rule": flow.rule,
        "initiator": flow.initiator,
        "responder": flow.responder,
        "protocol": flow.protocol,
        "port": flow.port,
        "local": [key[0], key[1]] if key else None,
        "remote": [key[2], key[3]] if key else None,
        "start": flow.start,
        "end": flow.ended,
        "task": flow.task,
        "predicted": flow.predicted,
        "verdict": flow.verdict.value,
        "decided_by": flow.decided_by,
        "symptom": flow.symptom,
        "matched": flow.matched or "row without an attempt",
        "bytes": flow.sent + flow.received,
        "bytes_sent": flow.sent,
        "bytes_received": flow.received,
        "payload_sent": flow.payload_sent,
        "payload_received": flow.payload_received,
        "bytes_source": flow.bytes_source or "none",
        "witnesses": flow.witnesses,
        "reasons": flow.reasons,
        "consistent": flow.consistent,
        "disagreements": flow.disagreements,
    }
