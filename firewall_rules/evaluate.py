# SPDX-License-Identifier: MIT
"""The oracle: what a policy, with its overlays, does to one connection attempt, and which rule decides.

It says what a client would see if the responder listens: allow → allowed, reset → refused, prohibit → prohibited,
drop → timed out (flow reference section 8). It never looks at a firewall; `firewall_rules.render` makes one that must
behave the same, and tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from firewall_rules import roles
from firewall_rules.model import DEFAULT_RULE, Action, Addresses, Policy, Protocol, Rule
from firewall_rules.overlay import Overlay, newest_first
from firewall_rules.ports import HIGHEST, text
from firewall_rules.verdict import Verdict
from firewall_rules.world import hosts_of, roles_of

VERDICT_OF: dict[Action, Verdict] = {
    Action.ALLOW: Verdict.ALLOWED,
    Action.DROP: Verdict.TIMED_OUT,
    Action.RESET: Verdict.REFUSED,
    Action.PROHIBIT: Verdict.PROHIBITED,
}
LOOPBACK = "loopback"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, the id of the rule that decides, the matrix row it stands for, its action, and why, for people."""

    verdict: Verdict
    rule: str | None
    row: str | None
    action: Action | None
    explanation: str


def evaluate(
    policy: Policy,
    addresses: Addresses,
    initiator: str,
    responder: str,
    protocol: str,
    port: int,
    overlays: Sequence[Overlay] = (),
) -> Decision:
    """Predicts one connection attempt.

    Args:
        initiator, responder: host or role names. A role stands for all its hosts; when they would fare differently the
            verdict is *could not check*. protocol: "tcp" or "udp". port: the responder's.

    Raises:
        UnknownEndpoint: a name is neither host nor role. ValueError: protocol or port cannot be.
    """
    if protocol not in Protocol.BOTH.parts:
        raise ValueError(f"protocol {protocol!r} is not tcp or udp")
    if not 1 <= port <= HIGHEST:
        raise ValueError(f"port {port} is outside 1-{HIGHEST}")
    pairs = [(a, b) for a in _members(initiator, addresses) for b in _members(responder, addresses)]
    decisions = [_decide(policy, addresses, a, b, protocol, port, overlays) for a, b in pairs]
    if len({(d.verdict, d.rule) for d in decisions}) == 1:
        return decisions[0]
    listing = "; ".join(f"{a} to {b}: {d.verdict}" for (a, b), d in zip(pairs, decisions, strict=True))
    return Decision(Verdict.COULD_NOT_CHECK, None, None, None, f"hosts of the role differ: {listing}")


def _members(name: str, addresses: Addresses) -> list[str]:
    return sorted(hosts_of(name, addresses)) or [name]


def _decide(
    policy: Policy,
    addresses: Addresses,
    initiator: str,
    responder: str,
    protocol: str,
    port: int,
    overlays: Sequence[Overlay],
) -> Decision:
    flow = f"{initiator} to {responder} {protocol}/{port}"
    if initiator == responder:
        return Decision(Verdict.ALLOWED, LOOPBACK, None, None, f"{flow}: inside one machine, no rule applies")
    from_names = {initiator, *roles_of(initiator, addresses), roles.ANY}
    to_names = {responder, *roles_of(responder, addresses), roles.ANY}
    for overlay in newest_first(overlays):
        if _matches(overlay, from_names, to_names, protocol, port):
            what = "allowed" if overlay.action is Action.ALLOW else f"blocked ({overlay.action})"
            reason = f"{flow}: {what} live by {overlay.id}{_place(overlay)}"
            return Decision(VERDICT_OF[overlay.action], overlay.id, overlay.row, overlay.action, reason)
    for rule in policy.rules:
        if _matches(rule, from_names, to_names, protocol, port):
            reason = f"{flow}: rule {rule.id} of {policy.name} says {rule.action}{_place(rule)}"
            return Decision(VERDICT_OF[rule.action], rule.id, rule.row, rule.action, reason)
    reason = f"{flow}: no rule of {policy.name} matches, the default says {policy.default}{_near(policy, port)}"
    return Decision(VERDICT_OF[policy.default], DEFAULT_RULE, None, policy.default, reason)


def _matches(rule: Rule | Overlay, from_names: set[str], to_names: set[str], protocol: str, port: int) -> bool:
    return (
        not from_names.isdisjoint(rule.initiators)
        and not to_names.isdisjoint(rule.responders)
        and protocol in rule.protocol.parts
        and any(port in r for r in rule.ports)
    )


def _place(rule: Rule | Overlay) -> str:
    where = f"{', '.join(rule.initiators)} to {', '.join(rule.responders)} {rule.protocol}/{text(rule.ports)}"
    return f" (row {rule.row}: {where})" if rule.row else f" ({where})"


def _near(policy: Policy, port: int) -> str:
    near = [rule.id for rule in policy.rules if any(port in r for r in rule.ports)]
    return f"; rules with that port but other ends: {', '.join(near)}" if near else ""
