# SPDX-License-Identifier: MIT
"""What every renderer promises (`firewall_rules.render.base`). Renderers are found by reflection: a new one is tested by existing."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import firewall_rules.render
from firewall_rules.errors import UnknownEndpoint
from firewall_rules.evaluate import evaluate
from firewall_rules.load import load_matrix, load_policy, policy_names
from firewall_rules.model import DEFAULT_RULE, Action
from firewall_rules.overlay import of_row
from firewall_rules.render import Renderer, marks
from tests.firewall_rules.worlds import WORLD, overlay, policy, rule


def renderers() -> Iterator[type[Renderer]]:
    for found in pkgutil.iter_modules(firewall_rules.render.__path__):
        importlib.import_module(f"firewall_rules.render.{found.name}")
    waiting = list(Renderer.__subclasses__())
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        yield kind


ALL = sorted(renderers(), key=lambda kind: kind.name)


@pytest.fixture(params=ALL, ids=[kind.name for kind in ALL])
def renderer(request: pytest.FixtureRequest) -> Renderer:
    made: Renderer = request.param()
    return made


OVERLAYS = [
    of_row("block-1", load_matrix().row("H5"), Action.RESET),
    overlay("allow-2", "allow", "proxy-1", "esxi-1", 902),
    overlay("block-3", "prohibit", "backup_server", "any", "any", new_only=True),
]
VARIANTS = policy(
    rule("A", "proxy", "esxi", [902, "1000-2000"]),
    rule("B", "proxy", "any", "any", "drop"),
    rule("C", "any", "vcenter", 443, "reset"),
    rule("D", "console", ["vcenter", "san"], 7, "prohibit", protocol="udp"),
    rule("E", "backup_server", "esxi", 53, protocol="tcp+udp"),
)


def test_there_is_a_renderer() -> None:
    assert "nft" in [kind.name for kind in ALL]
    assert len({kind.name for kind in ALL}) == len(ALL)


@pytest.mark.parametrize("name", policy_names())
def test_every_rule_is_there_in_order_and_the_default_is_last(renderer: Renderer, name: str) -> None:
    candidate = load_policy(name)
    decided = renderer.decisions(renderer.render(candidate, WORLD))
    assert decided == [*((r.id, r.action) for r in candidate.rules), (DEFAULT_RULE, candidate.default)]


def test_every_action_and_protocol_can_be_said(renderer: Renderer) -> None:
    decided = renderer.decisions(renderer.render(VARIANTS, WORLD))
    assert decided == [*((r.id, r.action) for r in VARIANTS.rules), (DEFAULT_RULE, Action.DROP)]


def test_overlays_come_first_the_newest_before_the_others(renderer: Renderer) -> None:
    decided = renderer.decisions(renderer.render(VARIANTS, WORLD, OVERLAYS))
    assert [rule_id for rule_id, _ in decided][:4] == ["block-3", "allow-2", "block-1", "A"]


@pytest.mark.parametrize("default", [Action.DROP, Action.RESET, Action.PROHIBIT])
def test_an_empty_policy_denies_everything(renderer: Renderer, default: Action) -> None:
    decided = renderer.decisions(renderer.render(policy(default=default), WORLD))
    assert {rule_id for rule_id, _ in decided} == {DEFAULT_RULE}
    assert decided[0] == (DEFAULT_RULE, default)
    assert Action.ALLOW not in [action for _, action in decided]


def test_the_same_input_gives_the_same_text(renderer: Renderer) -> None:
    shuffled = {role: dict(reversed(hosts.items())) for role, hosts in reversed(WORLD.items())}
    assert renderer.render(VARIANTS, WORLD, OVERLAYS) == renderer.render(VARIANTS, shuffled, OVERLAYS)


def test_the_addresses_are_those_of_the_roles(renderer: Renderer) -> None:
    text = renderer.render(policy(rule("A", "proxy", "esxi", 902)), WORLD)
    assert all(address in text for role in ("proxy", "esxi") for address in WORLD[role].values())
    assert WORLD["vcenter"]["vcenter"] not in text


def test_a_rule_without_hosts_is_left_out_and_named(renderer: Renderer) -> None:
    text = renderer.render(policy(rule("A", "proxy", "nfs_filer", 2049), rule("B", "proxy", "esxi", 902)), WORLD)
    assert [rule_id for rule_id, _ in renderer.decisions(text)] == ["B", DEFAULT_RULE]
    assert "A" in text and "nfs_filer" in text


def test_unknown_names_are_refused(renderer: Renderer) -> None:
    with pytest.raises(UnknownEndpoint, match="proxie"):
        renderer.render(policy(rule("A", "proxie", "esxi", 902)), WORLD)
    with pytest.raises(UnknownEndpoint, match="nobody"):
        renderer.render(policy(), WORLD, [overlay("block-1", "drop", "nobody", "esxi", 1)])


def test_marks_name_the_rules_that_allow() -> None:
    table = marks(VARIANTS, OVERLAYS)
    assert table == {1: "A", 5: "E", 0x1002: "allow-2"}
    for mark, rule_id in table.items():
        if mark < 0x1000:
            assert VARIANTS.rules[mark - 1].id == rule_id


def test_what_is_rendered_is_what_the_oracle_knows(renderer: Renderer) -> None:
    ids = {rule_id for rule_id, _ in renderer.decisions(renderer.render(VARIANTS, WORLD, OVERLAYS))}
    asked = [
        evaluate(VARIANTS, WORLD, a, b, protocol, port, OVERLAYS).rule
        for a, b in (("proxy-1", "esxi-1"), ("proxy-2", "san"), ("console", "vcenter"), ("backup-server", "esxi-1"))
        for protocol in ("tcp", "udp")
        for port in (7, 53, 443, 902)
    ]
    assert set(asked) <= ids and len(set(asked)) > 5
