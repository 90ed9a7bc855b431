# SPDX-License-Identifier: MIT
"""The evidence of one run as data: everything that a verdict may look at, and nothing else.

`lab.judge.folder` reads it from a run folder; tests build it directly. Times are UTC nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from firewall_rules.model import Matrix
from firewall_rules.verdict import Verdict
from lab.judge.world import World

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the evaluator says of a new connection: verdict, the rule that decides, its row (None: the rule has none).

    `before` is what it says under the rules that a live change was just replacing; either may have met the packet.
    """

    verdict: Verdict
    rule: str
    row: str | None
    before: Verdict | None = None


class Rulebook(Protocol):
    """The rules in force during the run, policy and overlay, as the firewall was told them."""

    def predict(self, src: str, dst: str, protocol: str, port: int, utc: int) -> Prediction:
        """The evaluator's word about a new connection at that time."""

    def verdict_of(self, rule: str) -> Verdict | None:
        """What a rule does to a new connection; None for an unknown rule."""

    def row_of(self, rule: str) -> str | None:
        """The row that a rule stands for."""

    def rule_of_mark(self, mark: int) -> str | None:
        """The rule that sets this connection mark; None when none does."""

    def rows_of_all_rules(self) -> list[tuple[str, str | None]]:
        """Every rule id with its row."""

    def loopback_rules(self) -> list[str]:
        """Rules that lint finds to be for connections inside one machine."""


@dataclass(frozen=True, slots=True)
class Capture:
    """How far the capture can be trusted. `complete` False: the absence of a packet proves nothing."""

    complete: bool
    reason: str = ""


@dataclass(slots=True)
class Evidence:
    """The evidence of one run.

    events   `engine.events` lines of the run's session
    tcp      TCP flows of `lab.observe.packets`; others: its non-TCP lines
    log      the firewall's log: utc, prefix (rule id), src, dst, sport, dport, proto
    tracking conntrack flows: src, dst, sport, dport, proto, states (names), start, stop, bytes_orig, bytes_reply,
             packets_orig, packets_reply
    before, after   rule id → {packets, bytes}; counted_from, counted_to: between which times each was read
    gateway  the vcenter journal; esxi: one list a host; freezes: one list a VM
    """

    run: str
    kind: str
    session: str | None
    began: int
    ended: int
    world: World
    matrix: Matrix
    rules: Rulebook
    capture: Capture
    events: list[Record]
    tcp: list[Record]
    others: list[Record] = field(default_factory=list)
    log: list[Record] = field(default_factory=list)
    log_lost: int = 0
    tracking: list[Record] = field(default_factory=list)
    tracking_lost: int = 0
    before: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    after: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    counted_from: tuple[int, int] | None = None
    counted_to: tuple[int, int] | None = None
    gateway: list[Record] | None = None
    esxi: Mapping[str, list[Record]] = field(default_factory=dict)
    freezes: Mapping[str, list[Record]] | None = None

    def counted(self, rule: str) -> int | None:
        """Packets that a rule counted during the run; None when it has no counter."""
        if rule not in self.after:
            return None
        return int(self.after[rule]["packets"]) - int(self.before.get(rule, {}).get("packets", 0))
