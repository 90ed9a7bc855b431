# SPDX-License-Identifier: MIT
"""Joins what four observers saw of the same connection attempt.

A *flow* is one connection attempt (initiator, 5-tuple, start). The engine's *attempt* and the capture's TCP flow meet by
5-tuple and time; the firewall's log lines and the conntrack record are added by 5-tuple. TCP flows without an attempt,
and all other packets, are *foreign*. Attempts towards the machine itself never reach the router: they are *local*.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from lab.judge.evidence import Evidence, Record
from lab.judge.rules import BUILT_IN

TOLERANCE_NS = 250_000_000
"""How far an observer's time of the same SYN may lie before the flow's start (user-space time stamps come late, never early)."""

LONGEST_NS = 60_000_000_000
"""How long after an attempt without an outcome its SYN may still leave."""

Tuple4 = tuple[str, int, str, int]


@dataclass(slots=True)
class Attempt:
    """One attempt as the engine recorded it. `outcome` is None when the process ended before it knew."""

    id: str
    step: str | None
    host: str
    process: str
    task: str | None
    target: str
    local: tuple[str, int]
    remote: tuple[str, int]
    utc: int
    pid: int | None = None
    outcome: str | None = None
    code: str | None = None
    done: int | None = None
    uses: list[str] = field(default_factory=list)

    @property
    def steps(self) -> list[str]:
        """The step that opened it, then those that used it, each once."""
        first = [self.step] if self.step else []
        return list(dict.fromkeys([*first, *self.uses]))

    @property
    def is_local(self) -> bool:
        """True when both ends are the same machine."""
        return self.remote[0].startswith("127.") or self.remote[0] == self.local[0]


@dataclass(slots=True)
class Joined:
    """One connection attempt with what each observer saw of it. `matched` says how event and packets met."""

    key: Tuple4
    start: int
    attempt: Attempt | None
    packets: Record | None
    matched: str
    log: list[Record] = field(default_factory=list)
    tracking: Record | None = None


@dataclass(slots=True)
class Join:
    """All joined flows in order of time, the foreign ones, and what stayed inside one machine."""

    flows: list[Joined]
    foreign: list[Joined]
    local: list[Attempt]


def attempts(events: list[Record]) -> list[Attempt]:
    """The attempts of the events, in order; later `outcome` and `use` events are put into their attempt."""
    found: dict[str, Attempt] = {}
    for event in sorted(events, key=lambda e: int(e.get("utc", 0))):
        kind, name = event.get("kind"), str(event.get("attempt", ""))
        if kind == "attempt":
            found[name] = _attempt(event)
        elif name in found and kind == "outcome":
            found[name].outcome = str(event.get("outcome"))
            found[name].code = event.get("code")
            found[name].done = int(event["utc"])
        elif name in found and kind == "use" and event.get("step"):
            found[name].uses.append(str(event["step"]))
    return list(found.values())


def _attempt(event: Record) -> Attempt:
    local, remote = event.get("local") or ["", 0], event["remote"]
    return Attempt(
        id=str(event["attempt"]),
        step=event.get("step"),
        host=str(event.get("host")),
        process=str(event.get("process")),
        task=event.get("task"),
        target=str(event.get("target")),
        local=(str(local[0]), int(local[1])),
        remote=(str(remote[0]), int(remote[1])),
        utc=int(event["utc"]),
        pid=event.get("pid"),
    )


def join(evidence: Evidence) -> Join:
    """Puts the observers together."""
    known = attempts(evidence.events)
    local = [a for a in known if a.is_local]
    flows, left = _with_packets([a for a in known if not a.is_local], evidence)
    foreign = [Joined(_tuple(p), _begin(p), None, p, "packets only") for p in left]
    everything = sorted([*flows, *foreign], key=lambda f: f.start)
    _add_log(everything, evidence.log)
    _add_tracking(everything, evidence.tracking)
    return Join(sorted(flows, key=lambda f: f.start), sorted(foreign, key=lambda f: f.start), local)


def _with_packets(known: list[Attempt], evidence: Evidence) -> tuple[list[Joined], list[Record]]:
    unclaimed = sorted(evidence.tcp, key=_begin)
    joined = []
    exact = [a for a in known if a.local[1]]
    loose = [a for a in known if not a.local[1]]
    for attempt, how in [*((a, "5-tuple") for a in exact), *((a, "host, port and time") for a in loose)]:
        packets = _claim(attempt, unclaimed, evidence)
        key = _tuple(packets) if packets else (*attempt.local, *attempt.remote)
        start = packets["start"] if packets and packets["start"] else attempt.utc
        joined.append(Joined(key, start, attempt, packets, how if packets else "event only"))
    return joined, unclaimed


def _claim(attempt: Attempt, unclaimed: list[Record], evidence: Evidence) -> Record | None:
    party = evidence.world.named(attempt.host)
    source = attempt.local[0] if attempt.local[0] not in ("", "0.0.0.0") else (party.address if party else "")
    best = None
    for packets in unclaimed:
        same = (packets["dst"], packets["dport"]) == attempt.remote and packets["src"] == source
        if not same or (attempt.local[1] and packets["sport"] != attempt.local[1]):
            continue
        away = _begin(packets) - attempt.utc
        latest = attempt.done - attempt.utc + TOLERANCE_NS if attempt.done else LONGEST_NS
        if not -TOLERANCE_NS <= away <= latest:
            continue
        if best is None or away < _begin(best) - attempt.utc:
            best = packets
    if best is not None:
        unclaimed.remove(best)
    return best


def _add_log(flows: list[Joined], log: list[Record]) -> None:
    by_key: dict[Tuple4, list[Joined]] = defaultdict(list)
    for flow in flows:
        by_key[flow.key].append(flow)
    for record in log:
        if record["prefix"] in BUILT_IN:
            continue  # no SYN: it decided nothing about an attempt
        same, utc = by_key.get(_tuple(record), []), int(record["utc"])
        # A port may be used again at once: the packet is of the last flow that had begun (the log counts microseconds).
        begun = [f for f in same if f.start // 1000 <= utc // 1000]
        soon = [f for f in same if f.start - TOLERANCE_NS <= utc]
        if soon:
            (begun[-1] if begun else soon[0]).log.append(record)


def _add_tracking(flows: list[Joined], tracking: list[Record]) -> None:
    by_key: dict[Tuple4, list[Record]] = defaultdict(list)
    for record in tracking:
        by_key[_tuple(record)].append(record)
    for flow in flows:
        records = by_key.get(flow.key, [])
        if records:
            nearest = min(records, key=lambda r: abs(int(r.get("start") or flow.start) - flow.start))
            records.remove(nearest)
            flow.tracking = nearest


def _tuple(record: Record) -> Tuple4:
    return str(record["src"]), int(record["sport"] or 0), str(record["dst"]), int(record["dport"] or 0)


def _begin(packets: Record) -> int:
    start: Any = packets["start"]
    if start:
        return int(start)
    activity = packets["activity"]
    return int(activity[0][0]) if activity else int(packets["end"])
