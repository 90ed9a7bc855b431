# SPDX-License-Identifier: MIT
"""I1, I2 and I10: who may not be called, who may not call, and rules that must not exist."""

from __future__ import annotations

from lab.judge.evidence import Evidence, Record
from lab.judge.invariants.model import Invariant, Scene, first_seen, pair, result, unusable
from lab.judge.marks import Mark, passages
from lab.judge.world import BACKUP_ROLES, PROTECTED_ROLES


def guests_untouched(scene: Scene) -> Invariant:
    """I1: no packet to a guest network before step 9 (12 for Linux guests)."""
    source = "packets; mark of step 9 or 12"
    evidence = scene.evidence
    mark = next(iter(passages(scene.marks, "9", "12")), None)
    limit = mark.begin if mark else evidence.ended
    early = []
    for record in [*evidence.tcp, *evidence.others]:
        at = first_seen(record)
        ends = [str(record["dst"])] + ([str(record["src"])] if record["kind"] == "tcp" else [])
        guests = [g for g in map(evidence.world.guest_at, ends) if g]
        if guests and at < limit:
            early.append(f"{pair(record, evidence)} {(limit - at) / 1e6:.0f} ms before {_when(mark)}")
    if not early and (doubt := unusable("I1", source, evidence)):
        return doubt
    return result("I1", source, early, f"no packet to a guest network before {_when(mark)}")


def nobody_calls_back(scene: Scene) -> Invariant:
    """I2: no connection from a guest, an ESXi host, vCenter or the SAN towards a backup component."""
    source = "packets"
    evidence, world = scene.evidence, scene.evidence.world
    calls = []
    for record in [*evidence.tcp, *evidence.others]:
        if record["kind"] == "tcp" and record["start"] is None:
            continue
        if record["kind"] == "other" and (record["error"] or record["icmp"] == "0/0" or _answers(record, evidence)):
            continue
        if record["kind"] == "other" and not evidence.capture.complete:
            continue  # what it answers may be among the lost packets
        src, dst = world.at(str(record["src"])), world.at(str(record["dst"]))
        src = src or world.guest_at(str(record["src"]))
        if src and dst and src.role in PROTECTED_ROLES and dst.role in BACKUP_ROLES:
            calls.append(pair(record, evidence))
    if not calls and (doubt := unusable("I2", source, evidence)):
        return doubt
    return result("I2", source, calls, "no guest, ESXi host, vCenter or SAN opened anything towards a backup component")


def _answers(record: Record, evidence: Evidence) -> bool:
    """True when a datagram answers one that the other side sent before."""
    reverse = (record["dst"], record["dport"], record["src"], record["sport"], record["protocol"])
    return any(
        (o["src"], o["sport"], o["dst"], o["dport"], o["protocol"]) == reverse and o["first"] <= record["first"]
        for o in evidence.others
    )


def no_loopback_rules(scene: Scene) -> Invariant:
    """I10: rules for loopback rows do not exist; taking them away would change nothing."""
    source = "lint of the policy; the firewall's counters"
    evidence = scene.evidence
    local = {r.id for r in evidence.matrix.rows if r.semantics.value == "local"}
    named = {rule for rule, row in evidence.rules.rows_of_all_rules() if row in local}
    problems = []
    for rule in sorted(named | set(evidence.rules.loopback_rules())):
        counted = evidence.counted(rule)
        moved = f"its counter moved by {counted}" if counted else "its counter did not move"
        problems.append(f"rule {rule} is for connections inside one machine ({moved})")
    for rule in sorted(set(evidence.after) & local - named):
        if evidence.counted(rule):
            problems.append(f"the counter of local row {rule} moved")
    return result("I10", source, problems, f"no rule stands for a local row ({', '.join(sorted(local)) or 'none'})")


def _when(mark: Mark | None) -> str:
    return f"step {mark.step}" if mark else "the end (no step 9 or 12 in this run)"
