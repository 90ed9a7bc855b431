# SPDX-License-Identifier: MIT
"""Schedules of jobs: cron syntax in UTC or a named zone. Pure functions; the clock is whoever calls.

Five fields (minute, hour, day of the month, month, day of the week) as in Debian's cron, by cronsim, which also follows
Debian in the hours that daylight saving time skips or repeats. Six fields (seconds) are refused. *Missed* is a run whose
time passed while the service was down for longer than `GRACE`: `skip` forgets it, `run-once` runs the job once,
however many were missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict

GRACE = timedelta(seconds=60)
"""A start that comes later than this after its time is a missed one."""


def _cron(expression: str) -> str:
    fields = expression.split()
    if len(fields) != 5:
        raise ValueError("cron needs five fields: minute, hour, day of month, month, day of week")
    try:
        next(CronSim(" ".join(fields), datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as exc:
        raise ValueError(f"cron expression: {exc}") from exc
    except StopIteration:
        raise ValueError("cron expression: it never comes true") from None
    return " ".join(fields)


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError("unknown time zone; write UTC or a name such as Europe/Berlin") from None
    return name


class Schedule(BaseModel):
    """When a job starts by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cron: Annotated[str, AfterValidator(_cron)]
    zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    missed: Literal["skip", "run-once"] = "skip"

    def next(self, after: datetime) -> datetime | None:
        """The first start later than `after`, in UTC; None when there is none any more."""
        try:
            found: datetime = next(CronSim(self.cron, after.astimezone(ZoneInfo(self.zone))))
        except StopIteration:
            return None
        return found.astimezone(UTC)

    def coming(self, after: datetime, count: int) -> list[datetime]:
        """The next `count` starts, in UTC."""
        found: list[datetime] = []
        while len(found) < count and (one := self.next(found[-1] if found else after)) is not None:
            found.append(one)
        return found


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done now. `at`: the time that it is for; `missed`: how many starts are forgotten."""

    start: bool
    at: datetime | None = None
    missed: int = 0


NOTHING = Due(False)
_MOST = 100_000


def due(schedule: Schedule, considered: datetime, now: datetime) -> Due:
    """What the schedule asks for between `considered` (exclusive) and `now` (inclusive).

    Several starts in that time are one: the newest within `GRACE`, else what the policy for missed ones says.
    """
    if now <= considered:  # the clock was put back: nothing runs a second time
        return NOTHING
    last: datetime | None = None
    count = 0
    coming = schedule.next(considered)
    while coming is not None and coming <= now and count < _MOST:
        last, count = coming, count + 1
        coming = schedule.next(coming)
    if last is None:
        return NOTHING
    if now - last <= GRACE:
        return Due(True, last, count - 1)
    return Due(schedule.missed == "run-once", last, count - (schedule.missed == "run-once"))


def from_ns(ns: int) -> datetime:
    """UTC nanoseconds as a time."""
    return datetime.fromtimestamp(ns / 1e9, UTC)


def to_ns(at: datetime) -> int:
    """A time as UTC nanoseconds (whole microseconds)."""
    return round((at - datetime.fromtimestamp(0, UTC)) / timedelta(microseconds=1)) * 1000
