# SPDX-License-Identifier: MIT
"""The shipped matrix and policies: complete for the seed job, tied to the engine's steps, and their files' errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.steps import BY_ID
from firewall_rules.errors import FileInvalid, PolicyUnusable, RuleError, UnknownRow
from firewall_rules.load import dump_policy, load_matrix, load_policy, policy_names
from firewall_rules.model import Consequence, Semantics
from firewall_rules.needs import KINDS, kind_of, needed
from firewall_rules.roles import ROLES
from firewall_rules.verdict import Verdict
from lab.topology.model import Role as TopologyRole

MATRIX = load_matrix("12.3")


def test_the_job_needs_the_rows_of_the_flow_reference() -> None:
    # flow reference section 2.7, profile 12.3, Linux managed servers, Network mode, database on the backup server
    assert {row.id for row in needed(MATRIX, kinds=["job"])} == {"C1", "M4", "M5", "D1", "H1", "H4", "H5", "G10"}
    restores = {"C1", "M4", "M5", "R1", "D1", "H1", "H4", "H5"}  # to a file, of files, instant recovery, into a new VM
    assert {row.id for row in needed(MATRIX, kinds=["restore"])} == restores
    assert {row.id for row in needed(MATRIX, kinds=["rescan"])} == {"C1", "M4", "H1"}


@pytest.mark.parametrize(
    ("facts", "more", "less"),
    [
        ({"direction": "repository-to-proxy"}, {"D2"}, {"D1"}),
        ({"vcenter": "standalone"}, {"H2", "H6"}, {"H1", "H4"}),
        ({"transport": "san"}, {"H9"}, set()),
        ({"config_db": "postgresql"}, {"C13"}, set()),
        ({"guest": "none"}, set(), {"G10"}),
        ({"guest": ["linux", "windows"]}, {"G4", "G5"}, set()),
    ],
)
def test_facts_change_the_need(facts: dict[str, str], more: set[str], less: set[str]) -> None:
    usual = {row.id for row in needed(MATRIX)}
    assert {row.id for row in needed(MATRIX, facts)} == (usual | more) - less


@pytest.mark.parametrize("facts", [{"directoin": "repository-to-proxy"}, {"direction": "both"}])
def test_unknown_facts_are_refused(facts: dict[str, str]) -> None:
    with pytest.raises(RuleError, match="fact"):
        needed(MATRIX, facts)


def test_every_step_of_a_row_is_a_step_of_the_engine() -> None:
    for row in MATRIX.rows:
        for step in (*row.steps, *([row.blocked.step] if row.blocked.step else [])):
            assert step in BY_ID, f"row {row.id} names step {step}"


def test_every_step_that_opens_a_connection_has_a_row() -> None:
    # Steps without a connection of their own: local ones; 21 writes on the connection of step 7 and 20b on that of 18
    # (flow reference section 2.2); r10b, HotAdd of a restore, on that of r8.
    without = {"20b", "21", "r10b"}
    opened = {step for row in MATRIX.rows for step in row.opens}
    assert {s.id for s in BY_ID.values() if not s.local} - without <= opened
    used = {step for row in MATRIX.rows for step in row.uses}
    assert without <= used


def test_a_blocked_row_of_a_run_says_where_and_how_it_shows() -> None:
    for row in needed(MATRIX):
        assert row.blocked.step in row.opens
        assert row.blocked.run is not Consequence.NOTHING


def test_kinds_follow_from_step_ids() -> None:
    assert {kind_of(step) for step in BY_ID} == set(KINDS)


def test_roles_are_those_of_the_topology() -> None:
    assert {role.value for role in TopologyRole} <= set(ROLES)


def test_console_only_and_installer_ports_are_not_in_the_run() -> None:
    for row_id, port in (("C2", 9396), ("C3", 9420), ("M3", 6160)):
        row = MATRIX.row(row_id)
        assert row.semantics is Semantics.NOT_IN_RUN and any(port in r for r in row.ports)


def test_rows_are_found_by_roles_and_port() -> None:
    assert next(r.id for r in MATRIX.find(["backup_server"], ["repository"], "tcp", 2600)) == "M5"
    assert MATRIX.find(["proxy"], ["esxi"], "udp", 902) == ()
    assert MATRIX.row("g10").id == "G10"
    with pytest.raises(UnknownRow, match="C1, C8, C13"):
        MATRIX.row("Q1")


@pytest.mark.parametrize("name", policy_names())
def test_shipped_policies_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    policy = load_policy(name)
    assert policy.name == name
    path = tmp_path / "copy.yaml"
    path.write_text(dump_policy(policy))
    assert load_policy(path) == policy
    assert policy.without("H5").rule("H5") is None


BROKEN_POLICIES = {
    "rules: 5": "name",
    "{name: p, profile: '12.3', default: allow}": "never allow",
    "{name: p, profile: '12.3', rules: [{id: A, from: proxy, to: esxi, ports: '1 2'}]}": "several ports",
    "{name: p, profile: '12.3', rules: [{id: A, from: proxy, to: esxi, ports: 1, porst: 2}]}": "porst",
    "{name: p, profile: '12.3', rules: [{id: a b, from: proxy, to: esxi, ports: 1}]}": "not an id",
    "{name: p, profile: '12.3', rules: [{id: default, from: proxy, to: esxi, ports: 1}]}": "reserved",
    "{name: p, profile: '12.3', rules: [{id: A-1, from: proxy, to: esxi, ports: 1},"
    " {id: A.1, from: proxy, to: esxi, ports: 2}]}": "too alike",
    "{name: p, profile: '12.3', rules: [{id: A, from: proxy, to: esxi, ports: 1, comment: 'say \"x\"'}]}": "quotes",
    "[1, 2": "not YAML",
    "- 1": "mapping",
}


@pytest.mark.parametrize(("text", "word"), BROKEN_POLICIES.items())
def test_a_broken_policy_is_one_clear_error(text: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(FileInvalid, match=word) as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)


def test_unknown_roles_and_rows_are_one_error_unless_lint_wants_them(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("{name: p, profile: '12.3', rules: [{id: A, row: Q1, from: proxie, to: esxi, ports: 1}]}")
    with pytest.raises(PolicyUnusable, match=r"'proxie' is not a role.*no row 'Q1'"):
        load_policy(path)
    assert load_policy(path, names=False).rules[0].initiators == ("proxie",)


def test_a_missing_policy_names_those_there_are() -> None:
    with pytest.raises(FileInvalid, match=r"default-12\.3"):
        load_policy("nothing")
    with pytest.raises(FileInvalid, match="no matrix"):
        load_matrix("99")


ROW = "{id: X1, from: proxy, to: esxi, ports: 1, semantics: not-in-run, phase: init, blocked: {run: nothing, symptom: s}%s}"


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (ROW % ", colour: red", "colour"),
        (ROW.replace("esxi", "exsi") % "", "exsi"),
        (ROW.replace("not-in-run", "required") % "", "no step opens it"),
        (ROW % ", opens: ['1']", "step 1 opens it"),
        (ROW % ", when: {transport: san}", "condition"),
        (ROW % ", source: {text: t, date: yesterday}", "YYYY-MM"),
        ("5", "not a mapping"),
        (f"{ROW % ''}, {ROW % ''}", "twice"),
    ],
)
def test_a_broken_matrix_is_one_clear_error(row: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(f"product: p\nversion: '1'\nsource: {{text: t, date: 2025-07}}\nrows: [{row}]\n")
    with pytest.raises(FileInvalid, match=word):
        load_matrix("1", tmp_path)


def test_verdicts_have_one_glyph_each() -> None:
    assert [v.glyph for v in Verdict] == list(".RPT?!")
    assert all(Verdict.of_glyph(v.glyph) is v for v in Verdict)
