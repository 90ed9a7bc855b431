# SPDX-License-Identifier: MIT
"""Rows of a measurement, options, and the median."""

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
    """One subject: seconds of each round, MiB a second over the whole disk, size of the result, CPU, ratios to others."""

    name: str
    seconds: list[float] = field(default_factory=list)
    mib: float = 0.0
    out_mib: float | None = None
    cpu_seconds: list[float] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def median(self) -> float:
        """Median of the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """MiB a second."""
        return self.mib / self.median

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "median": round(self.median, 3), "rate": round(self.rate, 1)}


def compare(rows: list[Row], references: list[str]) -> None:
    """Fills `ratios`: how many times as fast as each reference (more is better)."""
    by_name = {row.name: row for row in rows}
    for row in rows:
        row.ratios = {name: round(by_name[name].median / row.median, 2) for name in references if name != row.name}
