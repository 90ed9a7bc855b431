# SPDX-License-Identifier: MIT
"""What a live firewall request is about: a matrix row, or FROM TO PORT, as an overlay; and whether it is allowed by now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from firewall_rules.errors import RuleError
from firewall_rules.evaluate import evaluate
from firewall_rules.load import explain
from firewall_rules.model import Action, Addresses, Matrix, Policy, Protocol, Rule
from firewall_rules.overlay import Overlay, of_row
from firewall_rules.ports import HIGHEST, parse_ports
from firewall_rules.verdict import Verdict
from firewall_rules.world import hosts_of
from lab.realise.nft_errors import RequestInvalid, TargetUnknown

WITH: dict[str, Action] = {"drop": Action.DROP, "reset": Action.RESET, "icmp": Action.PROHIBIT}


@dataclass(frozen=True, slots=True)
class Target:
    """A matrix row, or from, to (hosts or roles) and a port specification: `902`, `2500-3300`, `any`, `53/udp`."""

    row: str | None = None
    source: str | None = None
    responder: str | None = None
    ports: str | None = None

    @classmethod
    def of(cls, params: dict[str, Any]) -> Target:
        """From a request's `row`, or its `from`, `to` and `port`.

        Raises:
            RequestInvalid: neither, or both.
        """
        row, ends = params.get("row"), [params.get(key) for key in ("from", "to", "port")]
        if row and any(end is not None for end in ends):
            raise RequestInvalid("give a row, or FROM TO PORT, not both")
        if row:
            return cls(row=str(row))
        if any(end is None or end == "" for end in ends):
            raise RequestInvalid("give a row, or all of FROM, TO and PORT")
        return cls(None, *(str(end) for end in ends))

    def overlay(self, overlay_id: str, action: Action, matrix: Matrix, addresses: Addresses, new_only: bool) -> Overlay:
        """The overlay that does `action` to this target.

        Raises:
            TargetUnknown: no such row, host, role or port here.
        """
        try:
            if self.row is not None:
                made = of_row(overlay_id, matrix.row(self.row), action, new_only=new_only)
            else:
                made = self._pair(overlay_id, action, new_only)
            self._check(made, addresses)
        except RuleError as exc:
            raise TargetUnknown(str(exc)) from exc
        except ValidationError as exc:
            raise TargetUnknown(explain(exc)) from exc
        return made

    def _pair(self, overlay_id: str, action: Action, new_only: bool) -> Overlay:
        ports, _, protocol = str(self.ports).partition("/")
        if (protocol or "tcp") not in set(Protocol):
            raise RequestInvalid(f"{protocol!r} is not a protocol: write {ports}/tcp, {ports}/udp or {ports}/tcp+udp")
        return Overlay.model_validate(
            {
                "id": overlay_id,
                "action": action,
                "from": self.source,
                "to": self.responder,
                "protocol": protocol or "tcp",
                "ports": parse_ports([part.strip() for part in ports.split(",")]),
                "new_only": new_only,
            }
        )

    def _check(self, made: Overlay, addresses: Addresses) -> None:
        for names in (made.initiators, made.responders):
            if not any(hosts_of(name, addresses) for name in names):
                what = f"row {self.row}" if self.row else "this pair"
                raise TargetUnknown(f"{what}: no host here has the role {' or '.join(names)}")


def allowed_everywhere(overlay: Overlay, policy: Policy, addresses: Addresses, others: Sequence[Overlay]) -> bool:
    """True when every connection that `overlay` is about is allowed by the policy and `others`."""
    deciding: list[Rule | Overlay] = [*policy.rules, *others]
    edges = {port for rule in deciding for r in rule.ports for port in (r.first, r.last + 1)}
    for portrange in overlay.ports:
        ports = {portrange.first, *(p for p in edges if portrange.first <= p <= min(portrange.last, HIGHEST))}
        for initiator, responder in _pairs(overlay, addresses):
            for protocol in overlay.protocol.parts:
                for port in ports:
                    decision = evaluate(policy, addresses, initiator, responder, protocol, port, others)
                    if decision.verdict is not Verdict.ALLOWED:
                        return False
    return True


def _pairs(overlay: Overlay, addresses: Addresses) -> list[tuple[str, str]]:
    initiators = {host for name in overlay.initiators for host in hosts_of(name, addresses)}
    responders = {host for name in overlay.responders for host in hosts_of(name, addresses)}
    return [(a, b) for a in sorted(initiators) for b in sorted(responders) if a != b]
