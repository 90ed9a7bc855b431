# SPDX-License-Identifier: MIT
"""`docs/sequence.md` beside the code: every step stands there once and in order, and what it names exists."""

from __future__ import annotations

import re

from engine.steps import STEPS
from firewall_rules.load import load_matrix
from lab.realise.mounts import CODE

PAGE = (CODE / "docs" / "sequence.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
TABLE = [row for row in ROWS if len(row) == 7 and not row[0].startswith(("step", "-"))]


def test_every_step_stands_there_in_order() -> None:
    named = [step for row in TABLE for step in (("9", "10", "11") if row[0] == "9-11" else (row[0],)) if step]
    assert named == [step.id for step in STEPS]


def test_each_row_that_is_named_exists_and_lists_the_step() -> None:
    matrix = load_matrix()
    for step, _, _, _, rows, *_ in TABLE:
        for name in re.findall(r"\b[A-Z]\d+\b", rows):
            assert not step or step in matrix.row(name).steps, f"row {name} does not list step {step}"


def test_each_module_and_function_that_is_named_exists() -> None:
    sequence = (CODE / "engine" / "manager" / "sequence.py").read_text()
    for row in TABLE:
        names = re.findall(r"`([^`]+)`", row[-1])
        assert names or not row[-1], row
        for name in (n for n in names if n.startswith("step_")):
            assert f"def {name}(" in sequence, name
        for module in (n for n in names if n.startswith("engine.")):
            path = CODE / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module
