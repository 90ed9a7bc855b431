# SPDX-License-Identifier: MIT
"""Lint: each code has a policy that earns it, and the shipped policies earn none that matters."""

from __future__ import annotations

from typing import Any

import pytest

from firewall_rules import lint as module
from firewall_rules.lint import Severity, lint
from firewall_rules.load import load_matrix, load_policy
from firewall_rules.model import Policy, Rule
from tests.firewall_rules.worlds import WORLD, policy, rule

MATRIX = load_matrix()
DEFAULT = load_policy("default-12.3")
NETWORK = load_policy("network-12.3")
EVERY_MODE: dict[str, str | list[str]] = {"transport": ["network", "hotadd", "san"]}
Facts = dict[str, str | list[str]]


def with_rules(*rules: Rule) -> Policy:
    return policy(*NETWORK.rules, *rules)


def codes(candidate: Policy, **more: Any) -> set[tuple[str, str | None]]:
    return {(finding.code, finding.rule or finding.row) for finding in lint(candidate, MATRIX, **more)}


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("network-12.3", {}),
        ("default-12.3", EVERY_MODE),
        ("reverse-data", EVERY_MODE | {"direction": "repository-to-proxy"}),
        ("both-directions", EVERY_MODE | {"direction": ["proxy-to-repository", "repository-to-proxy"]}),
        ("network-12.3", {"guest": "none"}),
        ("postgres-12.3", EVERY_MODE | {"config_db": "postgresql"}),
        ("rest-12.3", EVERY_MODE | {"start": "rest"}),
    ],
)
def test_the_shipped_policies_are_exactly_what_their_run_needs(name: str, facts: Facts) -> None:
    found = lint(load_policy(name), MATRIX, facts, addresses=WORLD)
    assert [f.code for f in found if f.severity is not Severity.NOTE] == []
    assert [f.rule for f in found] == (["G10"] if facts.get("guest") == "none" else [])


@pytest.mark.parametrize("missing", [r.id for r in DEFAULT.rules])
def test_each_rule_of_the_default_policy_is_necessary(missing: str) -> None:
    assert ("lint.missing-row", missing) in codes(DEFAULT.without(missing), facts=EVERY_MODE, addresses=WORLD)


CASES = {
    "lint.unknown-role": rule("X", "proxie", "esxi", 902),
    "lint.unknown-row": rule("X", "proxy", "esxi", 902, row="H55"),
    "lint.shadowed": rule("X", "proxy", "esxi", 902, "reset"),
    "lint.any": rule("X", "any", "esxi", 22),
    "lint.wider-than-row": rule("X", "proxy", "esxi", "900-910", row="H5"),
    "lint.duplicate": rule("X", "proxy", "esxi", 902),
    "lint.redundant": rule("X", "proxy", "repository", 2600),
    "lint.loopback": rule("X", "backup_server", "backup_server", 9393),
    "lint.wrong-protocol": rule("X", "proxy", "esxi", 902, protocol="udp"),
    "lint.reversed": rule("X", "esxi", "proxy", 902),
    "lint.no-row": rule("X", "san", "console", 7),
    "lint.not-in-run": rule("X", "console", "backup_server", 9420),
}


@pytest.mark.parametrize(("code", "bad"), CASES.items())
def test_each_code_has_a_case(code: str, bad: Rule) -> None:
    found = [f for f in lint(with_rules(bad), MATRIX) if f.code == code]
    assert [f.rule for f in found] == ["X"]
    assert "X" in found[0].message and found[0].next
    assert set(found[0].to_dict()) == {"code", "severity", "rule", "row", "message", "next"}


def test_the_list_of_codes_in_the_docstring_is_complete() -> None:
    documented = {line.split()[0] for line in (module.__doc__ or "").splitlines() if line.startswith("lint.")}
    assert documented == {*CASES, "lint.missing-row"}


def test_errors_come_first_and_are_selected() -> None:
    found = lint(with_rules(CASES["lint.any"], rule("Y", "proxie", "esxi", 1)), MATRIX)
    assert found[0].code == "lint.unknown-role"
    assert module.errors(found) == [f for f in found if f.severity is Severity.ERROR]


def test_a_partly_shadowed_range_is_a_missing_row() -> None:
    ordered = policy(rule("N", "proxy", "repository", "2600-2700", "drop"), *DEFAULT.rules)
    (finding,) = [f for f in lint(ordered, MATRIX) if f.code == "lint.missing-row"]
    assert finding.row == "D1" and "2600-2700" in finding.message and "step 7" in finding.next


def test_roles_that_are_not_there_need_nothing() -> None:
    world = {role: hosts for role, hosts in WORLD.items() if role != "guest_linux"}
    assert codes(NETWORK.without("G10"), addresses=world) == set()


def test_a_refused_replication_rule_between_two_proxies_is_not_loopback() -> None:
    found = {f.code for f in lint(with_rules(rule("X", "proxy", "proxy", "2500-3300")), MATRIX) if f.rule == "X"}
    assert found == {"lint.not-in-run"}
