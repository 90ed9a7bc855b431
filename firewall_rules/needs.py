# SPDX-License-Identifier: MIT
"""Needs: which rows a run needs, from its facts.

Facts are what a run's configuration decides. Names and values: `direction` proxy-to-repository | repository-to-proxy (who
opens the data connection), `transport` network | hotadd | san | nfs, `vcenter` managed | standalone, `config_db` local |
postgresql | sqlserver, `guest` linux | windows | none (several: a collection), `start` console | rest | schedule (who starts
the job; a scheduled start is local). *Kinds* of runs are `job`, `restore` and `rescan`; a step id that begins with `r` or `i`
belongs to the latter two.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from firewall_rules.errors import RuleError
from firewall_rules.model import Matrix, Row, Semantics

Facts = Mapping[str, str | Collection[str]]

VALUES: dict[str, frozenset[str]] = {
    "direction": frozenset({"proxy-to-repository", "repository-to-proxy"}),
    "transport": frozenset({"network", "hotadd", "san", "nfs"}),
    "vcenter": frozenset({"managed", "standalone"}),
    "config_db": frozenset({"local", "postgresql", "sqlserver"}),
    "guest": frozenset({"linux", "windows", "none"}),
    "start": frozenset({"console", "rest", "schedule"}),
}
DEFAULT_FACTS: dict[str, str | Collection[str]] = {
    "direction": "proxy-to-repository",
    "transport": "network",
    "vcenter": "managed",
    "config_db": "local",
    "guest": "linux",
    "start": "console",
}
KINDS = ("job", "restore", "rescan")


def kind_of(step: str) -> str:
    """The kind of run that a step id belongs to."""
    return {"r": "restore", "i": "rescan"}.get(step[:1], "job")


def applies(row: Row, facts: Facts) -> bool:
    """True when a run with these facts may use the row at all.

    Raises:
        RuleError: a fact that does not exist, or a value that it cannot have.
    """
    if row.semantics in (Semantics.NOT_IN_RUN, Semantics.LOCAL):
        return False
    merged = {**DEFAULT_FACTS, **facts}
    return all(set(wanted) & _values(merged, name) for name, wanted in row.when.items())


def needed(matrix: Matrix, facts: Facts | None = None, kinds: Collection[str] = KINDS) -> tuple[Row, ...]:
    """Rows that runs of these kinds and facts need; a failover row is no need of its own."""
    given = facts or {}
    for name in given:
        _values(given, name)
    return tuple(
        row
        for row in matrix.rows
        if applies(row, given)
        and row.semantics is not Semantics.FAILOVER
        and any(kind_of(step) in kinds for step in row.opens)
    )


def _values(facts: Facts, name: str) -> set[str]:
    if name not in VALUES:
        raise RuleError(f"no fact {name!r}; facts are {', '.join(VALUES)}")
    value = facts[name]
    found = {value} if isinstance(value, str) else set(value)
    if wrong := found - VALUES[name]:
        raise RuleError(f"fact {name} cannot be {sorted(wrong)[0]!r}: it is {' or '.join(sorted(VALUES[name]))}")
    return found
