# SPDX-License-Identifier: MIT
"""I4 and I7: tickets before 902, and one Data Mover per task."""

from __future__ import annotations

from collections.abc import Iterator

from firewall_rules.verdict import Verdict
from lab.judge.evidence import Evidence, Record
from lab.judge.invariants.model import NOT_APPLICABLE, Invariant, Scene, pair, result, role, unusable
from lab.judge.verdict import Flow

NFC_PORT = 902


def tickets_first(scene: Scene) -> Invariant:
    """I4: a SYN to 902 only after the ticket for that host, and only to the address in the ticket."""
    source = "packets (order); the gateway's journal (address)"
    evidence = scene.evidence
    nfc = [t for t in evidence.tcp if t["dport"] == NFC_PORT and t["start"] and role(t["src"], evidence) == "proxy"]
    if not nfc:
        return Invariant("I4", NOT_APPLICABLE, "no proxy sent a SYN to 902", source)
    if evidence.gateway is None:
        return Invariant("I4", NOT_APPLICABLE, "the run has no journal of the vCenter gateway", source)
    tickets = [t for t in evidence.gateway if _ticket_address(t)]
    problems = []
    opened: dict[tuple[str, str], int] = {}
    for syn in sorted(nfc, key=lambda t: int(t["start"])):
        src, dst, at = str(syn["src"]), str(syn["dst"]), int(syn["start"])
        who = f"{pair(syn, evidence)}"
        mine = [t for t in tickets if int(t["utc"]) <= at and str((t.get("client") or [""])[0]) == src]
        right = [t for t in mine if _ticket_address(t) == dst]
        if not mine:
            problems.append(f"{who}: no ticket had been issued to this proxy")
        elif not right:
            addresses = ", ".join(sorted({str(_ticket_address(t)) for t in mine}))
            problems.append(f"{who}: its tickets name {addresses}")
        if evidence.capture.complete and not _answered_before(src, at, evidence):
            problems.append(f"{who}: no answer of vCenter to this proxy was on the wire before")
        if syn["synack_out"]:
            opened[(src, dst)] = opened.get((src, dst), 0) + 1
            if right and opened[(src, dst)] > len(right):
                problems.append(f"{who}: connection {opened[(src, dst)]}, but only {len(right)} tickets by then")
    if not problems and (doubt := unusable("I4", source, evidence)):
        return doubt
    return result("I4", source, problems, f"{len(nfc)} SYNs to 902, each after a ticket for that address")


def _answered_before(proxy: str, at: int, evidence: Evidence) -> bool:
    return any(
        t["src"] == proxy
        and role(t["dst"], evidence) in ("vcenter", "esxi")
        and t["dport"] == 443
        and any(a[0] < at and a[3] for a in t["activity"])
        for t in evidence.tcp
    )


def _ticket_address(entry: Record) -> str | None:
    """The host address of a ticket that the gateway gave; None for any other call, and for a refused one."""
    detail = entry.get("detail")
    if entry.get("fault") or not isinstance(detail, dict) or "session" not in detail:
        return None
    return str(detail["address"]) if detail.get("address") else None


def one_mover_per_task(scene: Scene) -> Invariant:
    """I7: one Data Mover per task on the proxy, and at least as many data connections as tasks."""
    source = "packets (control connections of M5, data connections of D1 and D2); tasks by step marks"
    evidence = scene.evidence
    tasks = {m.task for step in ("7", "20c", "21") for m in scene.marks.get(step, []) if _of_a_disk(m.task)}
    tasks |= {f.task for f in scene.flows if f.step == "7" and f.task and f.verdict is Verdict.ALLOWED}
    if not tasks:
        return Invariant("I7", NOT_APPLICABLE, "no task reached step 7", source)
    if doubt := unusable("I7", source, evidence):
        return doubt
    open_flows = [f for f in scene.flows if f.verdict is Verdict.ALLOWED and f.key]
    control = [f for f in open_flows if f.row == "M5" and f.key and role(f.key[2], evidence) == "proxy"]
    data = [f for f in open_flows if f.row in ("D1", "D2")]
    read = {m.task for step in ("20c", "21") for m in scene.marks.get(step, []) if _of_a_disk(m.task)}
    problems = []
    if len(control) < len(tasks):
        problems.append(f"{len(control)} control connections to Data Movers of proxies for {len(tasks)} tasks")
    if len(data) < len(read):
        problems.append(f"{len(data)} data connections for {len(read)} tasks that moved data")
    for one, other in _at_the_same_time(control):
        problems.append(
            f"two tasks share the Data Mover at {one.responder}:{one.port} (flows {one.number}, {other.number})"
        )
    held = f"{len(tasks)} tasks, {len(control)} Data Movers on proxies, {len(data)} data connections"
    return result("I7", source, problems, held)


def _of_a_disk(task: str | None) -> bool:
    """Whether a mark is of one disk's task, `<vm>:<key>`; a VM's own (its restore point is refused at 21) has no Data Mover."""
    return task is not None and task.rpartition(":")[2].isdigit()


def _at_the_same_time(control: list[Flow]) -> Iterator[tuple[Flow, Flow]]:
    for index, one in enumerate(control):
        for other in control[index + 1 :]:
            same = one.key and other.key and one.key[2:] == other.key[2:]
            if same and one.start and other.start and (one.ended or 0) > other.start and (other.ended or 0) > one.start:
                yield one, other
