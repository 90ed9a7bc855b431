# SPDX-License-Identifier: MIT
"""Retention: which restore points of a VM go, decided by a pure function, and applied by merging.

A point goes when every rule that is set lets it go: it is not among the newest `count`, and it is older than `days`. The
newest readable point always stays, and damaged points are never touched. A point that stays but stands on one that goes
takes over what it needs from it (it becomes a synthetic full, see `engine.store.merge`) before anything is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from engine.errors import InputError
from engine.store import merge
from engine.store.points import Points


@dataclass(frozen=True, slots=True)
class Policy:
    """Keep the newest `count` points, and those not older than `days`; at least one of the two is set."""

    count: int | None = None
    days: int | None = None

    def __post_init__(self) -> None:
        if self.count is None and self.days is None:
            raise InputError("a retention policy needs a number of restore points, or of days")
        if (self.count is not None and self.count < 1) or (self.days is not None and self.days < 1):
            raise InputError("a retention policy keeps at least one restore point, or one day")


@dataclass(frozen=True, slots=True)
class Kept:
    """What the decision needs to know of a readable point: its id, the time it was made, its parent's id (None: a full)."""

    point: str
    created: datetime
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """merges: points that become synthetic fulls. removals: points that go after that, each before what it stands on."""

    merges: tuple[str, ...] = ()
    removals: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.removals)

    def to_dict(self) -> dict[str, Any]:
        """As a message."""
        return {"merges": list(self.merges), "removals": list(self.removals)}


def plan(points: Sequence[Kept], policy: Policy, now: datetime) -> Plan:
    """What the policy wants done with the readable points of one VM at the time `now`; any order is accepted."""
    ordered = sorted(points, key=lambda point: (point.created, point.point))
    going = {point.point for rank, point in enumerate(reversed(ordered)) if rank and _goes(point, rank, policy, now)}
    merges = tuple(p.point for p in ordered if p.point not in going and p.parent in going)
    removals: list[str] = []
    waiting = [point for point in reversed(ordered) if point.point in going]
    while waiting:  # newest first, and never before one that stands on it, whatever the clocks said
        free = [point for point in waiting if not any(other.parent == point.point for other in waiting)]
        if not free:
            break
        removals.append(free[0].point)
        waiting.remove(free[0])
    return Plan(merges, tuple(removals))


def _goes(point: Kept, rank: int, policy: Policy, now: datetime) -> bool:
    by_count = policy.count is None or rank >= policy.count
    by_days = policy.days is None or point.created < now - timedelta(days=policy.days)
    return by_count and by_days


def plan_for(points: Points, job: str, vm: str, policy: Policy, now: datetime) -> Plan:
    """The plan for the visible points of a VM of a job.

    Points that a damaged point may stand on are kept: nobody can tell what that one needs.
    """
    found = points.of_vm(job, vm)
    readable = [p.manifest for p in found if p.manifest is not None]
    if len(readable) < len(found):
        return Plan()
    return plan([Kept(m.point, m.created, m.parent) for m in readable], policy, now)


def apply(points: Points, job: str, vm: str, policy: Policy, now: datetime, *, wait: float = merge.WAIT) -> Plan:
    """Does what the policy wants; returns what was done. Every visible point can be restored at every instant.

    Raises:
        ChainLocked: the chain is in use. Damaged: what must be merged is damaged; nothing was removed. StoreFull.
    """
    folder = points.folder_of(job, vm)
    with merge.merging(folder, wait=wait) as chain:
        todo = plan_for(points, job, vm, policy, now)
        for point in todo.merges:
            chain.consolidate(point)
        chain.remove(todo.removals)
        return todo
