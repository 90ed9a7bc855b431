# SPDX-License-Identifier: MIT
"""Schedules: cron in UTC and in zones with daylight saving time, what is due, what was missed, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.errors import InputError
from engine.model.jobs import validated_schedule
from engine.model.schedule import GRACE, Schedule, due, from_ns, to_ns

BASE = datetime(2026, 3, 1, tzinfo=UTC)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        ("30 22 * * *", "UTC", "2026-03-01T22:29", ["2026-03-01T22:30", "2026-03-02T22:30"]),
        ("30 22 * * *", "UTC", "2026-03-01T22:30", ["2026-03-02T22:30"]),
        ("*/20 5 * * *", "UTC", "2026-03-01T04:00", ["2026-03-01T05:00", "2026-03-01T05:20", "2026-03-01T05:40"]),
        ("0 8 * * 1-5", "UTC", "2026-03-06T09:00", ["2026-03-09T08:00"]),  # Friday to Monday
        ("0 0 29 2 *", "UTC", "2026-03-01T00:00", ["2028-02-29T00:00"]),
        ("0 22 * * *", "Europe/Berlin", "2026-03-28T12:00", ["2026-03-28T21:00", "2026-03-29T20:00"]),
        # 02:30 does not exist on 2026-03-29 in Berlin (02:00 becomes 03:00): as Debian's cron, at once after the gap
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
        # 02:30 comes twice on 2026-10-25: once only
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
    ],
)
def test_coming_starts(cron: str, zone: str, after: str, expected: list[str]) -> None:
    assert Schedule(cron=cron, zone=zone).coming(at(after), len(expected)) == [at(e) for e in expected]


@pytest.mark.parametrize(
    ("missed", "considered", "now", "start", "time", "count"),
    [
        ("skip", "2026-03-01T21:00", "2026-03-01T21:59:59", False, None, 0),
        ("skip", "2026-03-01T21:00", "2026-03-01T22:00:00", True, "2026-03-01T22:00", 0),
        ("skip", "2026-03-01T21:00", "2026-03-01T22:00:59", True, "2026-03-01T22:00", 0),
        ("skip", "2026-03-01T22:00", "2026-03-01T22:00:30", False, None, 0),
        ("skip", "2026-03-01T21:00", "2026-03-01T23:00:00", False, "2026-03-01T22:00", 1),
        ("skip", "2026-03-01T21:00", "2026-03-04T23:00:00", False, "2026-03-04T22:00", 4),
        ("run-once", "2026-03-01T21:00", "2026-03-04T23:00:00", True, "2026-03-04T22:00", 3),
        ("skip", "2026-03-01T21:00", "2026-03-04T22:00:10", True, "2026-03-04T22:00", 3),
        ("run-once", "2026-03-04T21:00", "2026-03-01T23:00:00", False, None, 0),  # the clock was put back
    ],
)
def test_what_is_due(missed: Any, considered: str, now: str, start: bool, time: str | None, count: int) -> None:
    found = due(Schedule(cron="0 22 * * *", missed=missed), at(considered), at(now))
    assert (found.start, found.at, found.missed) == (start, at(time) if time else None, count)


@given(
    st.lists(st.integers(1, 7200), min_size=1, max_size=40),
    st.sampled_from(["*/7 * * * *", "0 * * * *", "13 1-5 * * *"]),
)
def test_every_start_is_due_exactly_once_however_the_clock_is_looked_at(steps: list[int], cron: str) -> None:
    schedule = Schedule(cron=cron)
    now, told = BASE, 0
    for step in steps:
        before, now = now, now + timedelta(seconds=step)
        found = due(schedule, before, now)
        told += found.missed + found.start
        assert not (found.start and found.at and now - found.at > GRACE)
    inside = [s for s in schedule.coming(BASE, told + 1) if s <= now]
    assert told == len(inside)


@pytest.mark.parametrize(
    "fields",
    [
        {"cron": ""}, {"cron": "* * * *"}, {"cron": "* * * * * *"}, {"cron": "60 * * * *"}, {"cron": "@daily"},
        {"cron": "0 0 31 2 *"}, {"cron": "x * * * *"}, {"cron": "0 0 * * *", "zone": "Mars/Base"},
        {"cron": "0 0 * * *", "zone": "../etc/passwd"}, {"cron": "0 0 * * *", "zone": ""},
        {"cron": "0 0 * * *", "missed": "all"}, {"cron": "0 0 * * *", "colour": 1}, {"cron": 5},
    ],
)  # fmt: skip
def test_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Schedule.model_validate(fields)


def test_times_survive_the_database() -> None:
    now = datetime(2026, 11, 25, 8, 0, 0, 123456, tzinfo=UTC)
    assert from_ns(to_ns(now)) == now


def test_a_refused_schedule_names_the_field() -> None:
    with pytest.raises(InputError) as caught:
        validated_schedule({"cron": "daily"})
    assert caught.value.message.startswith("schedule: cron: cron needs five fields")
