# SPDX-License-Identifier: MIT
"""Ports: our strict notation, set arithmetic, and the vendor tables' cells of the flow reference section 6."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_rules.errors import PortsInvalid
from firewall_rules.ports import (
    ANY,
    PortRange,
    Relation,
    covers,
    intersect,
    merge,
    parse_ports,
    read_cell,
    subtract,
    text,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (443, "443"),
        ("443", "443"),
        ("2500-3300", "2500-3300"),
        ("2500 - 3300", "2500-3300"),
        ([445, 135], "135, 445"),
        ([2500, "2501-2510", 2511], "2500-2511"),
        ("any", "any"),
        ([6162, "2500-3300"], "2500-3300, 6162"),
    ],
)
def test_our_notation(value: Any, expected: str) -> None:
    assert text(parse_ports(value)) == expected


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("445 135", "list"),
        ("445, 135", "list"),
        ("2500 to 3300", "not a port"),
        ("2049+", "not a port"),
        ("mountd_port", "not a port"),
        ("3300-2500", "backwards"),
        (0, "outside"),
        (65536, "outside"),
        ("70000-70001", "outside"),
        ([], "no ports"),
        (True, "not a port"),
        (44.3, "not a port"),
        (None, "not a port"),
        ("", "not a port"),
        ([[443]], "not a port"),
    ],
)
def test_anything_else_is_a_clear_error(value: Any, word: str) -> None:
    with pytest.raises(PortsInvalid, match=word):
        parse_ports(value)


PORTS = st.integers(1, 60)
SETS = st.lists(st.tuples(PORTS, PORTS).map(lambda p: PortRange(min(p), max(p))), max_size=5).map(merge)


def members(ranges: tuple[PortRange, ...]) -> set[int]:
    return {port for r in ranges for port in range(r.first, r.last + 1)}


@given(SETS, SETS)
def test_arithmetic_is_that_of_sets(left: tuple[PortRange, ...], right: tuple[PortRange, ...]) -> None:
    assert members(intersect(left, right)) == members(left) & members(right)
    assert members(subtract(left, right)) == members(left) - members(right)
    assert covers(left, right) == (members(right) <= members(left))
    assert merge(left) == left


@pytest.mark.parametrize(
    ("cell", "ports", "relation", "open_ended", "words"),
    [
        ("445 135", ["445", "135"], Relation.ALL, (), ()),
        ("135; 445", ["135", "445"], Relation.ALL, (), ()),
        ("445, 135", ["445", "135"], Relation.UNCLEAR, (), ()),
        ("6162, 2500 to 3300", ["6162", "2500-3300"], Relation.UNCLEAR, (), ()),
        ("6162 or 2500 to 3300", ["6162", "2500-3300"], Relation.EITHER, (), ()),
        ("80 or 443", ["80", "443"], Relation.EITHER, (), ()),
        ("137 to 139", ["137-139"], Relation.ALL, (), ()),
        ("2049+", [], Relation.ALL, (2049,), ()),
        ("1058+ or 1063+", [], Relation.EITHER, (1058, 1063), ()),
        ("mountd\\_port", [], Relation.ALL, (), ("mountd_port",)),
        ("1433, 1434 and other", ["1433", "1434"], Relation.UNCLEAR, (), ("other",)),
        ("Depends on device configuration", [], Relation.ALL, (), ("Depends on device configuration",)),
        ("-", [], Relation.ALL, (), ()),
        ("esx01.example.com", [], Relation.ALL, (), ("esx01.example.com",)),
    ],
)
def test_vendor_cells(cell: str, ports: list[str], relation: Relation, open_ended: Any, words: Any) -> None:
    found = read_cell(cell)
    assert [str(p) for p in found.ports] == ports
    assert (found.relation, found.open_ended, found.words) == (relation, open_ended, words)
    assert found.complete == (bool(ports) and relation is not Relation.UNCLEAR and not open_ended and not words)


@given(st.text(max_size=40))
def test_a_cell_never_breaks_the_reader(cell: str) -> None:
    assert all(1 <= p.first <= p.last <= 65535 for p in read_cell(cell).ports)


def test_any_is_every_port() -> None:
    assert parse_ports("1-65535") == ANY
