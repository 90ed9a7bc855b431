# SPDX-License-Identifier: MIT
"""The rules in force during a run: a policy, the world it is applied to, and the overlays with the times of their changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from firewall_rules.evaluate import VERDICT_OF, evaluate
from firewall_rules.lint import lint
from firewall_rules.model import DEFAULT_RULE, INVALID_RULE, RESERVED, STRAY_RULE, Addresses, Matrix, Policy
from firewall_rules.overlay import Overlay
from firewall_rules.render.base import marks as connection_marks
from firewall_rules.verdict import Verdict
from lab.judge.evidence import Prediction

BUILT_IN = RESERVED - {DEFAULT_RULE}
"""Rules that decide no new connection: what they log and count is no SYN."""

SLACK_NS = 500_000_000
"""The firewall says what is in force a moment after the kernel obeys it; so much may lie between the two."""


@dataclass(frozen=True, slots=True)
class Change:
    """These overlays came into force at `utc`, or up to `SLACK_NS` before."""

    utc: int
    overlays: tuple[Overlay, ...]


@dataclass(frozen=True)
class PolicyBook:
    """`lab.judge.evidence.Rulebook` on the evaluator of `firewall_rules`. `names` maps addresses to host names."""

    policy: Policy
    matrix: Matrix
    addresses: Addresses
    names: Mapping[str, str]
    changes: Sequence[Change] = ()

    def overlays_at(self, utc: int) -> list[tuple[Overlay, ...]]:
        """What was in force at that time, newest first; two answers while a change was taking effect."""
        found: list[tuple[Overlay, ...]] = [self.changes[0].overlays if self.changes else ()]
        for change in self.changes[1:]:
            if change.utc < utc:
                found = [change.overlays]
            elif change.utc - SLACK_NS <= utc:
                found.insert(0, change.overlays)
        return found

    def predict(self, src: str, dst: str, protocol: str, port: int, utc: int) -> Prediction:
        """The evaluator's word; for an address that no host has, the policy's default."""
        initiator, responder = self.names.get(src), self.names.get(dst)
        if initiator is None or responder is None:
            return Prediction(VERDICT_OF[self.policy.default], DEFAULT_RULE, None)
        words = [
            evaluate(self.policy, self.addresses, initiator, responder, protocol, port, overlays)
            for overlays in self.overlays_at(utc)
        ]
        now, before = words[0], words[-1]
        return Prediction(now.verdict, now.rule or DEFAULT_RULE, now.row, before.verdict if len(words) > 1 else None)

    def verdict_of(self, rule: str) -> Verdict | None:
        """What a rule or an overlay does to a new connection."""
        if rule == DEFAULT_RULE:
            return VERDICT_OF[self.policy.default]
        if rule in (INVALID_RULE, STRAY_RULE):
            return Verdict.TIMED_OUT
        known = self.policy.rule(rule) or self._overlay(rule)
        return VERDICT_OF[known.action] if known else None

    def row_of(self, rule: str) -> str | None:
        """The row that a rule or an overlay stands for."""
        known = self.policy.rule(rule) or self._overlay(rule)
        return known.row if known else None

    def rule_of_mark(self, mark: int) -> str | None:
        """The rule of the policy, or the live change, that lets connections through with this mark."""
        return connection_marks(self.policy, [o for change in self.changes for o in change.overlays]).get(mark)

    def rows_of_all_rules(self) -> list[tuple[str, str | None]]:
        """Rules of the policy, then every overlay that was in force at some time."""
        overlays = {o.id: o for change in self.changes for o in change.overlays}
        return [*((r.id, r.row) for r in self.policy.rules), *((o.id, o.row) for o in overlays.values())]

    def loopback_rules(self) -> list[str]:
        """Rules that `lint` finds to be for connections inside one machine."""
        found = lint(self.policy, self.matrix, addresses=self.addresses)
        return [f.rule for f in found if f.code == "lint.loopback" and f.rule]

    def _overlay(self, rule: str) -> Overlay | None:
        return next((o for change in self.changes for o in change.overlays if o.id == rule), None)
