# SPDX-License-Identifier: MIT
"""Verdicts: the closed set of what can be said about one connection attempt, each with a one-character glyph.

There is no other verdict and no empty one: a table of verdicts is complete when every cell holds one of these.
"""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What happened, or will happen, to a connection attempt."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    PROHIBITED = "prohibited"
    TIMED_OUT = "timed out"
    NOT_ATTEMPTED = "not attempted"
    COULD_NOT_CHECK = "could not check"

    @property
    def glyph(self) -> str:
        """One character for truth tables: `.` `R` `P` `T` `?` `!`."""
        return _GLYPHS[self]

    @classmethod
    def of_glyph(cls, glyph: str) -> Verdict:
        """The verdict that a glyph stands for; KeyError when there is none."""
        return {mark: verdict for verdict, mark in _GLYPHS.items()}[glyph]


_GLYPHS = {
    Verdict.ALLOWED: ".",
    Verdict.REFUSED: "R",
    Verdict.PROHIBITED: "P",
    Verdict.TIMED_OUT: "T",
    Verdict.NOT_ATTEMPTED: "?",
    Verdict.COULD_NOT_CHECK: "!",
}
