# SPDX-License-Identifier: MIT
"""How a disk is read: by vCenter's record of changes, by comparing with the restore point below, or whole. Pure decisions.

`Base`: what a new restore point of a VM stands on. `Intent`: what to ask vCenter for. `Reading`: what the Data Mover is told.

| the disk in the point below | tracking                                                    | reading            |
|-----------------------------|-------------------------------------------------------------|--------------------|
| none (full, or a new disk)  | in effect                                                   | cbt, since `*`     |
| none                        | off, not in effect, refused                                 | all                |
| there                       | change IDs of one period, same size                         | cbt, since its ID  |
| there                       | off, no ID here or there, reset, grown or shrunk, refused   | compare            |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import VadplabError
from engine.vsphere.tracking import ALLOCATED, Extent


@dataclass(frozen=True, slots=True)
class Base:
    """What a restore point stands on: `parent` (its summary from the repository), or None with the `reason` for a full."""

    parent: Mapping[str, Any] | None
    reason: str = ""

    @property
    def kind(self) -> str:
        """Of the new point."""
        return "full" if self.parent is None else "incremental"

    @property
    def point(self) -> str | None:
        """The parent's id."""
        return None if self.parent is None else str(self.parent["point"])

    def disk(self, key: int) -> Mapping[str, Any] | None:
        """The same disk in the point below."""
        disks = [] if self.parent is None else self.parent["disks"]
        return next((disk for disk in disks if disk["key"] == key), None)


@dataclass(frozen=True, slots=True)
class Intent:
    """`since`: the change ID to ask vCenter with; None: it is not asked, for this `reason`."""

    since: str | None
    reason: str
    incremental: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """how: `cbt`, `compare` or `all`. ranges: the areas to read, None: all of it. incremental: the disk has a disk below it."""

    how: str
    reason: str
    incremental: bool
    ranges: list[Extent] | None = None

    @property
    def bytes(self) -> int | None:
        """How much will be read, where that is known."""
        return None if self.ranges is None else sum(length for _, length in self.ranges)


def base(newest: Mapping[str, Any] | None, problem: str | None, *, full: bool, uuid: str) -> Base:
    """What a VM's new restore point stands on.

    Args:
        newest: summary of the newest restore point, None when there is none. problem: why it cannot be used.
        full: a full was asked for. uuid: the VM's BIOS UUID now.
    """
    if full:
        return Base(None, "a full was asked for")
    if problem:
        return Base(None, f"the chain cannot be used: {problem}")
    if newest is None:
        return Base(None, "the first restore point")
    if newest.get("uuid") != uuid:
        return Base(None, "the newest restore point is of another VM with the same name")
    return Base(newest)


def intend(capacity: int, change_id: str | None, below: Mapping[str, Any] | None, *, wanted: bool, off: str) -> Intent:
    """What to ask vCenter about one disk.

    Args:
        change_id: of this run's snapshot. below: the same disk in the restore point below. wanted: the job uses tracking.
        off: why tracking is not in effect, where that is known.
    """
    incremental = below is not None
    if not wanted:
        return Intent(None, "change tracking is switched off in the job", incremental)
    if not change_id:
        return Intent(None, off or "change tracking is not in effect for this disk yet", incremental)
    if below is None:
        return Intent(ALLOCATED, "allocated areas", incremental)
    before = below.get("change_id")
    if not before:
        return Intent(None, "the restore point below has no change ID", incremental)
    if below["capacity"] != capacity:
        how = "grown" if capacity > below["capacity"] else "shrunk"
        return Intent(None, f"the disk has {how} from {below['capacity']} to {capacity} bytes", incremental)
    if period(before) != period(change_id):
        return Intent(None, "change tracking was reset since the restore point below", incremental)
    return Intent(before, "changed areas", incremental)


def settled(intent: Intent, ranges: list[Extent] | None, refusal: VadplabError | None = None) -> Reading:
    """The reading after vCenter was asked (`ranges`), was not asked (None), or refused."""
    if ranges is not None and refusal is None:
        return Reading("cbt", intent.reason, intent.incremental, ranges)
    reason = intent.reason if refusal is None else f"vCenter cannot tell what changed: {refusal.message}"
    return Reading("compare" if intent.incremental else "all", reason, intent.incremental)


def period(change_id: str) -> str:
    """The part of a change ID that is the same until tracking is reset."""
    return change_id.rpartition("/")[0].strip().lower()
