# SPDX-License-Identifier: MIT
"""I3: the order of the steps, by first SYNs where a step opens a connection and by payload between step marks elsewhere.

Checked over the run by each step's first time, and within each task and each VM where events name them. A job with
several VMs commits the snapshot of one while it reads the other, so 22 is held against its own VM.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from lab.judge.invariants.model import NOT_APPLICABLE, Invariant, Scene, result, unusable

_ORDER: tuple[tuple[str, ...], ...] = (
    ("3",),
    ("5a", "5b"),
    ("6",),
    ("7",),
    ("8",),
    ("10", "11", "13"),
    ("15",),
    ("18",),
    ("19",),
    ("20a", "20b", "20c"),
    ("22",),
)
_BY_SYN = frozenset({"5a", "5b", "6", "7", "8", "10", "11", "13", "18", "19"})
_BY_PAYLOAD = ("3", "15", "20a", "20b", "20c", "22")


@dataclass(frozen=True, slots=True)
class Sighting:
    """A step seen on the wire."""

    step: str
    utc: int
    vm: str | None
    task: str | None


def order_of_steps(scene: Scene) -> Invariant:
    """I3: 3 < 5 < 6 < 7 < 8 < (10, 11 or 13) < 15 < 18 < 19 < 20 < 22."""
    source = "first SYNs (5, 6, 7, 8, 10, 11, 13, 18, 19); payload activity between step marks (3, 15, 20, 22)"
    if doubt := unusable("I3", source, scene.evidence):
        return doubt  # what came first may be what was lost
    problems: list[str] = []
    seen = [*_syns(scene), *_payloads(scene, problems)]
    several = sum(s.step == "15" for s in seen) > 1
    whole = [s for s in seen if s.step != "22"]
    commits = [s for s in seen if s.step == "22"]
    if commits:
        whole.append(max(commits, key=lambda s: s.utc) if several else min(commits, key=lambda s: s.utc))
    chain = _firsts(whole)
    problems += _inversions(chain, "")
    for vm in sorted({s.vm for s in seen if s.vm}):
        problems += _inversions(_firsts([s for s in seen if s.vm == vm]), f"{vm}: ")
    for task in sorted({s.task for s in seen if s.task}):
        problems += _inversions(_firsts([s for s in seen if s.task == task]), f"task {task}: ")
    if len(chain) < 2 and not problems:
        return Invariant("I3", NOT_APPLICABLE, "fewer than two steps opened or used a connection", source)
    return result("I3", source, list(dict.fromkeys(problems)), " < ".join(name for name, _ in chain))


def _syns(scene: Scene) -> Iterator[Sighting]:
    for flow in scene.flows:
        packets = flow.joined.packets if flow.joined else None
        if flow.step in _BY_SYN and packets is not None and packets["start"]:
            yield Sighting(flow.step, int(packets["start"]), scene.vm_of(flow.task, {}), flow.task)


def _payloads(scene: Scene, problems: list[str]) -> Iterator[Sighting]:
    for step in _BY_PAYLOAD:
        used = [f.joined.packets for f in scene.flows if step in f.steps and f.joined and f.joined.packets]
        if step == "3" and not used:
            continue  # the configuration database is a local file: nothing to see
        for mark in scene.marks.get(step, []):
            if mark.phase == "skipped":
                continue
            times = [
                max(int(begin), mark.begin)
                for packets in used
                for begin, end, *_ in packets["activity"]
                if mark.overlaps(begin, end)
            ]
            if times:
                yield Sighting(step, min(times), scene.vm_of(mark.task, mark.data), mark.task)
            elif mark.phase == "end":
                problems.append(f"step {step} has begun and ended, but no connection carried payload meanwhile")


def _firsts(seen: list[Sighting]) -> list[tuple[str, int]]:
    """(steps of a group, its first time) in the order in which the groups must come."""
    found = []
    for group in _ORDER:
        mine = [s for s in seen if s.step in group]
        if mine:
            found.append(("/".join(dict.fromkeys(s.step for s in mine)), min(s.utc for s in mine)))
    return found


def _inversions(chain: list[tuple[str, int]], prefix: str) -> list[str]:
    return [
        f"{prefix}step {later} came {(at - next_at) / 1e6:.1f} ms before step {earlier}"
        for (earlier, at), (later, next_at) in itertools.pairwise(chain)
        if next_at <= at
    ]
