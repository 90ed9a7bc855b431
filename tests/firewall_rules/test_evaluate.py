# SPDX-License-Identifier: MIT
"""The oracle: do and don't tables."""

from __future__ import annotations

import pytest

from firewall_rules.errors import UnknownEndpoint
from firewall_rules.evaluate import evaluate
from firewall_rules.load import load_matrix, load_policy
from firewall_rules.model import Action
from firewall_rules.overlay import of_row
from firewall_rules.verdict import Verdict
from tests.firewall_rules.worlds import WORLD, overlay, policy, rule

DEFAULT = load_policy("default-12.3")
ALLOWED, TIMED_OUT, REFUSED, PROHIBITED = Verdict.ALLOWED, Verdict.TIMED_OUT, Verdict.REFUSED, Verdict.PROHIBITED


@pytest.mark.parametrize(
    ("initiator", "responder", "protocol", "port", "verdict", "decides"),
    [
        ("console", "backup-server", "tcp", 9392, ALLOWED, "C1"),
        ("backup-server", "proxy-1", "tcp", 6162, ALLOWED, "M4"),
        ("backup-server", "repository-1", "tcp", 3300, ALLOWED, "M5"),
        ("backup-server", "repository-1", "tcp", 3301, TIMED_OUT, "default"),
        ("proxy-1", "repository-1", "tcp", 2500, ALLOWED, "D1"),
        ("repository-1", "proxy-1", "tcp", 2500, TIMED_OUT, "default"),
        ("proxy", "esxi", "tcp", 902, ALLOWED, "H5"),
        ("proxy-1", "esxi-2", "udp", 902, TIMED_OUT, "default"),
        ("esxi-1", "proxy-1", "tcp", 902, TIMED_OUT, "default"),
        ("linux-guest", "backup-server", "tcp", 10006, TIMED_OUT, "default"),
        ("proxy-1", "proxy-1", "tcp", 1, ALLOWED, "loopback"),
    ],
)
def test_the_default_policy(
    initiator: str, responder: str, protocol: str, port: int, verdict: Verdict, decides: str
) -> None:
    decision = evaluate(DEFAULT, WORLD, initiator, responder, protocol, port)
    assert (decision.verdict, decision.rule) == (verdict, decides)
    assert decision.explanation
    if decides in ("C1", "H5"):
        assert decision.row == decides and f"row {decides}" in decision.explanation


@pytest.mark.parametrize("action", list(Action))
def test_each_action_has_its_verdict(action: Action) -> None:
    found = evaluate(policy(rule("A", "proxy", "esxi", 902, action)), WORLD, "proxy-1", "esxi-1", "tcp", 902)
    assert found.verdict == {"allow": ALLOWED, "drop": TIMED_OUT, "reset": REFUSED, "prohibit": PROHIBITED}[action]
    assert found.action is action


def test_the_first_match_decides_and_the_default_is_the_policys() -> None:
    ordered = policy(rule("A", "any", "esxi", "900-910", "reset"), rule("B", "proxy", "any", "any"), default="prohibit")
    assert evaluate(ordered, WORLD, "proxy-1", "esxi-1", "tcp", 902).rule == "A"
    assert evaluate(ordered, WORLD, "proxy-1", "esxi-1", "tcp", 911).rule == "B"
    assert evaluate(ordered, WORLD, "console", "esxi-1", "tcp", 911).verdict is PROHIBITED


def test_the_newest_overlay_decides_before_the_policy() -> None:
    matrix = load_matrix()
    changes = [
        of_row("block-1", matrix.row("H5"), Action.DROP),
        overlay("allow-2", "allow", "proxy-1", "esxi-1", 902),
        overlay("block-3", "reset", "proxy-1", "esxi-2", "any", new_only=True),
    ]
    for responder, expected in (("esxi-1", "allow-2"), ("esxi-2", "block-3")):
        assert evaluate(DEFAULT, WORLD, "proxy-1", responder, "tcp", 902, changes).rule == expected
    decision = evaluate(DEFAULT, WORLD, "proxy-2", "esxi-1", "tcp", 902, changes)
    assert (decision.verdict, decision.rule, decision.row) == (TIMED_OUT, "block-1", "H5")


def test_a_role_whose_hosts_fare_differently_could_not_be_checked() -> None:
    changes = [overlay("block-1", "drop", "proxy-1", "esxi-1", 902)]
    decision = evaluate(DEFAULT, WORLD, "proxy", "esxi-1", "tcp", 902, changes)
    assert decision.verdict is Verdict.COULD_NOT_CHECK and decision.rule is None
    assert "proxy-2 to esxi-1: allowed" in decision.explanation


def test_a_host_with_two_roles_has_the_rules_of_both() -> None:
    world = {**WORLD, "repository": {"proxy-1": "10.77.3.10"}}
    assert evaluate(DEFAULT, world, "console", "proxy-1", "tcp", 2600).rule == "R1"
    assert evaluate(DEFAULT, world, "proxy-1", "esxi-1", "tcp", 902).rule == "H5"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("nobody", "esxi-1", "tcp", 902), UnknownEndpoint),
        (("proxy-1", "nobody", "tcp", 902), UnknownEndpoint),
        (("proxy-1", "esxi-1", "sctp", 902), ValueError),
        (("proxy-1", "esxi-1", "tcp", 0), ValueError),
        (("proxy-1", "esxi-1", "tcp", 65536), ValueError),
    ],
)
def test_impossible_questions_are_refused(arguments: tuple[str, str, str, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        evaluate(DEFAULT, WORLD, *arguments)
