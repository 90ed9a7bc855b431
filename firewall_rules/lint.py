# SPDX-License-Identifier: MIT
"""Lint: what is wrong with a policy before any packet flows. Each finding has a stable code.

code                  severity  meaning
lint.unknown-role     error     a role that does not exist
lint.unknown-row      error     a matrix row that does not exist
lint.missing-row      error     a row that this run needs is not allowed
lint.shadowed         error     an earlier rule with another action takes all its connections
lint.any              warning   any source, any destination or any port
lint.wider-than-row   warning   allows more than the row it names
lint.duplicate        warning   the same connections and action as an earlier rule
lint.redundant        warning   narrower than an earlier rule with the same action
lint.loopback         warning   for connections inside one machine, which never meet a firewall
lint.wrong-protocol   warning   a decoy: the row has the other protocol (UDP 902 beside TCP 902)
lint.reversed         warning   a decoy: the row has the opposite direction
lint.no-row           warning   no row of the matrix has such a connection
lint.not-in-run       note      the row exists, but this run does not use it
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum

from firewall_rules import needs, roles
from firewall_rules.model import Action, Addresses, Matrix, Policy, Protocol, Row, Rule, Semantics
from firewall_rules.needs import KINDS, Facts
from firewall_rules.ports import ANY, PortRange, covers, intersect, merge, overlaps, subtract, text

# Roles of the smallest world that a job, a restore and a rescan run in.
USUAL_ROLES = frozenset({"console", "backup_server", "proxy", "repository", "vcenter", "esxi", "guest_linux"})


class Severity(StrEnum):
    """Errors make a policy unusable or insufficient; warnings make it too wide or useless in part."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about a policy: code, severity, rule or row it is about, what, and what to do."""

    code: str
    severity: Severity
    rule: str | None
    row: str | None
    message: str
    next: str

    def to_dict(self) -> dict[str, str | None]:
        """For JSON documents."""
        return asdict(self)


def lint(
    policy: Policy,
    matrix: Matrix,
    facts: Facts | None = None,
    kinds: Collection[str] = KINDS,
    addresses: Addresses | None = None,
) -> list[Finding]:
    """Every finding, errors first, then in the policy's order.

    Args:
        facts, kinds: what the runs will be like (`firewall_rules.needs`). addresses: the world; without it, the usual
            roles are taken to have a host each.
    """
    present = frozenset(r for r, hosts in addresses.items() if hosts) if addresses is not None else USUAL_ROLES
    found: list[Finding] = []
    for position, rule in enumerate(policy.rules):
        found += _names(rule, matrix)
        found += _order(rule, policy.rules[:position])
        found += _breadth(rule, matrix)
        if rule.action is Action.ALLOW:
            found += _purpose(rule, matrix, facts or {})
    found += _missing(policy, needs.needed(matrix, facts, kinds), present)
    rank = list(Severity)
    return sorted(found, key=lambda finding: rank.index(finding.severity))


def unusable(policy: Policy, matrix: Matrix) -> list[Finding]:
    """Findings that keep a policy from being put in force at all: names that do not exist."""
    return [finding for rule in policy.rules for finding in _names(rule, matrix)]


def errors(findings: list[Finding]) -> list[Finding]:
    """Those that make the policy unusable or insufficient."""
    return [finding for finding in findings if finding.severity is Severity.ERROR]


def _names(rule: Rule, matrix: Matrix) -> Iterator[Finding]:
    for name in (*rule.initiators, *rule.responders):
        if not roles.known(name):
            yield Finding(
                "lint.unknown-role",
                Severity.ERROR,
                rule.id,
                rule.row,
                f"rule {rule.id}: {name!r} is not a role",
                f"Roles are {', '.join(roles.ROLES)}.",
            )
    if rule.row is not None and not matrix.has(rule.row):
        yield Finding(
            "lint.unknown-row",
            Severity.ERROR,
            rule.id,
            rule.row,
            f"rule {rule.id}: profile {matrix.profile} has no row {rule.row!r}",
            f"Rows are {', '.join(row.id for row in matrix.rows)}.",
        )


def _order(rule: Rule, earlier: tuple[Rule, ...]) -> Iterator[Finding]:
    for other in earlier:
        if not _contains(other, rule):
            continue
        if other.action is not rule.action:
            code, severity, what = "lint.shadowed", Severity.ERROR, f"never decides: {other.id} ({other.action}) does"
        elif _contains(rule, other):
            code, severity, what = "lint.duplicate", Severity.WARNING, f"says the same as {other.id}"
        else:
            code, severity, what = "lint.redundant", Severity.WARNING, f"is part of {other.id}"
        message = f"rule {rule.id} {what}"
        yield Finding(code, severity, rule.id, rule.row, message, "Remove it, or put it before the other.")
        return


def _contains(outer: Rule, inner: Rule) -> bool:
    return (
        _names_cover(outer.initiators, inner.initiators)
        and _names_cover(outer.responders, inner.responders)
        and outer.protocol.covers(inner.protocol)
        and covers(outer.ports, inner.ports)
    )


def _names_cover(outer: tuple[str, ...], inner: tuple[str, ...]) -> bool:
    return roles.ANY in outer or set(inner) <= set(outer)


def _breadth(rule: Rule, matrix: Matrix) -> Iterator[Finding]:
    if rule.action is not Action.ALLOW:
        return
    wide = [
        word
        for word, is_any in (
            ("from", roles.ANY in rule.initiators),
            ("to", roles.ANY in rule.responders),
            ("ports", rule.ports == ANY),
        )
        if is_any
    ]
    if wide:
        message = f"rule {rule.id} allows any {', any '.join(wide)}"
        yield Finding("lint.any", Severity.WARNING, rule.id, rule.row, message, "Name roles and ports.")
        return
    if rule.row is None or not matrix.has(rule.row):
        return
    row = matrix.row(rule.row)
    more = [*sorted(set(rule.initiators) - set(row.initiators)), *sorted(set(rule.responders) - set(row.responders))]
    if not row.protocol.covers(rule.protocol):
        more.append(rule.protocol.value)
    if extra := subtract(rule.ports, row.ports):
        more.append(f"ports {text(extra)}")
    if more:
        message = f"rule {rule.id} is wider than row {row.id}: {', '.join(more)}"
        yield Finding(
            "lint.wider-than-row",
            Severity.WARNING,
            rule.id,
            row.id,
            message,
            f"The row is {', '.join(row.initiators)} to {', '.join(row.responders)} {row.protocol}/{text(row.ports)}.",
        )


def _purpose(rule: Rule, matrix: Matrix, facts: Facts) -> Iterator[Finding]:
    if roles.ANY in (*rule.initiators, *rule.responders):
        return
    if set(rule.initiators) == set(rule.responders) and len(rule.initiators) == 1 and _local(rule, matrix):
        message = f"rule {rule.id} is for connections inside {rule.initiators[0]}: they never meet a firewall"
        yield Finding("lint.loopback", Severity.WARNING, rule.id, rule.row, message, "Remove it: nothing changes.")
        return
    backing = [row for row in matrix.rows if _meets(rule, row)]
    if not backing:
        yield _decoy(rule, matrix)
    elif not any(needs.applies(row, facts) for row in backing):
        ids = ", ".join(row.id for row in backing)
        message = f"rule {rule.id} allows row {ids}, which this run does not use ({backing[0].title or 'no title'})"
        yield Finding("lint.not-in-run", Severity.NOTE, rule.id, backing[0].id, message, "Remove it for this run.")


def _local(rule: Rule, matrix: Matrix) -> bool:
    return not any(_meets(rule, row) for row in matrix.rows if row.semantics is not Semantics.LOCAL)


def _meets(rule: Rule, row: Row, *, protocol: bool = True, backwards: bool = False) -> bool:
    initiators, responders = (row.responders, row.initiators) if backwards else (row.initiators, row.responders)
    return (
        not set(rule.initiators).isdisjoint(initiators)
        and not set(rule.responders).isdisjoint(responders)
        and overlaps(rule.ports, row.ports)
        and (not protocol or _shares(rule.protocol, row.protocol))
    )


def _shares(left: Protocol, right: Protocol) -> bool:
    return not set(left.parts).isdisjoint(right.parts)


def _decoy(rule: Rule, matrix: Matrix) -> Finding:
    for row in matrix.rows:
        if _meets(rule, row, protocol=False):
            message = f"rule {rule.id} opens {rule.protocol}/{text(rule.ports)}; row {row.id} is {row.protocol}"
            advice = f"Write {row.protocol}, or remove it."
            return Finding("lint.wrong-protocol", Severity.WARNING, rule.id, row.id, message, advice)
    for row in matrix.rows:
        if _meets(rule, row, backwards=True):
            message = f"rule {rule.id} has the opposite direction of row {row.id}: there {row.initiators[0]} initiates"
            return Finding("lint.reversed", Severity.WARNING, rule.id, row.id, message, "Turn it round, or remove it.")
    message = f"rule {rule.id}: no row of profile {matrix.profile} has such a connection"
    return Finding("lint.no-row", Severity.WARNING, rule.id, None, message, "Remove it, or say which row it is for.")


def _missing(policy: Policy, rows: tuple[Row, ...], present: Collection[str]) -> Iterator[Finding]:
    for row in rows:
        for initiator, responder in _pairs(row, present):
            for protocol in row.protocol.parts:
                lacking = subtract(row.ports, allowed_ports(policy, initiator, responder, protocol))
                if lacking:
                    step = f" (step {row.blocked.step})" if row.blocked.step else ""
                    yield Finding(
                        "lint.missing-row",
                        Severity.ERROR,
                        None,
                        row.id,
                        f"row {row.id} is needed but not allowed: {initiator} to {responder} {protocol}/{text(lacking)}",
                        f"Allow it. Without it: {row.blocked.symptom}{step}.",
                    )


def _pairs(row: Row, present: Collection[str]) -> Iterator[tuple[str, str]]:
    for initiator in row.initiators:
        for responder in row.responders:
            if initiator in present and responder in present and initiator != responder:
                yield initiator, responder


def allowed_ports(policy: Policy, initiator: str, responder: str, protocol: str) -> tuple[PortRange, ...]:
    """Ports that a policy allows between two roles, first match deciding."""
    rest, allowed = ANY, list[PortRange]()
    for rule in policy.rules:
        if (
            not {initiator, roles.ANY}.isdisjoint(rule.initiators)
            and not {responder, roles.ANY}.isdisjoint(rule.responders)
            and protocol in rule.protocol.parts
        ):
            if rule.action is Action.ALLOW:
                allowed += intersect(rest, rule.ports)
            rest = subtract(rest, rule.ports)
    return merge(allowed)
