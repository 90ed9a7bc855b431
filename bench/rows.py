# SPDX-License-Identifier: MIT
"""Rows of a measurement, options, goals, and what a measurement gives."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """What the user asked for: bytes of the test disk, rounds, a scratch folder."""

    size: int
    rounds: int
    scratch: Path


@dataclass
class Row:
    """One subject: seconds of each round, MiB a second over the whole disk, size of the result, CPU, ratios to others.

    `group`: rows that are compared with each other, and shown in one table.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    mib: float = 0.0
    out_mib: float | None = None
    cpu_seconds: list[float] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    note: str = ""
    group: str = ""

    @property
    def median(self) -> float:
        """Median of the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def cpu(self) -> float | None:
        """Median of the CPU seconds."""
        return statistics.median(self.cpu_seconds) if self.cpu_seconds else None

    @property
    def rate(self) -> float:
        """MiB a second."""
        return self.mib / self.median

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "median": round(self.median, 3), "rate": round(self.rate, 1)}


@dataclass(frozen=True)
class Goal:
    """One goal: what is measured, what is wanted (`at_least`, or at most), what was found."""

    text: str
    wanted: float
    found: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "found": round(self.found, 3), "met": self.met}


@dataclass(frozen=True)
class Stage:
    """Where time goes in one half of one run: seconds of the clock and of the CPU, summed over the threads that were in it.

    Of a job through the lab: in one group of runs, by steps and by daemons, medians of the rounds.
    """

    subject: str
    half: str
    stage: str
    wall: float
    cpu: float
    calls: int


@dataclass
class Result:
    """What a measurement gives."""

    rows: list[Row]
    goals: list[Goal] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)


def compare(rows: list[Row], references: list[str]) -> None:
    """Fills `ratios`: how many times as fast as each reference (more is better)."""
    by_name = {row.name: row for row in rows}
    for row in rows:
        row.ratios = {
            name: round(by_name[name].median / row.median, 2)
            for name in references
            if name != row.name and name in by_name
        }
