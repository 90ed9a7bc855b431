# SPDX-License-Identifier: MIT
"""Prints `docs/errors.md` from the classes of the catalogue: `make docs` writes it, a test compares it."""

from __future__ import annotations

import importlib
import pkgutil

import engine
import firewall_rules
import lab
from engine.errors import InputError, VadplabError, catalogue
from firewall_rules.errors import RuleError

HEAD = """# Error codes

Every error that a command, a REST answer or a document shows has one of these codes; `engine/errors.py` says how they are made. They
are stable: what a message says may change, its code does not. The exit code is that of a command that ends with the error; a warning of a
run keeps its code and the command still ends with 0. This page is made from the code by `make docs`.

`problems[]` of the evidence has four more: `invariant.broken` (exit 1), `run.nothing-checked` and `run.packets-lost` (3),
`run.inconsistent` (4): `vadplab flows RUN` shows where, the run's `report.json` why.
"""
ONLY_INSIDE_NBDKIT = "engine.recovery.plugin"


def main() -> None:
    """Prints the page: one table for each part of the code before the dot."""
    for package in (engine, firewall_rules, lab):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith(("__main__", ONLY_INSIDE_NBDKIT)):
                importlib.import_module(module.name)
    rows = [(kind.code, kind.exit_code, kind.__doc__, kind.advice) for kind in catalogue()]
    rows += [
        (kind.code, InputError.exit_code, kind.__doc__, InputError.advice)
        for kind in (RuleError, *RuleError.__subclasses__())
    ]
    rows = [row for row in rows if row[0] not in (VadplabError.code, RuleError.code)]
    rows += [(VadplabError.code, VadplabError.exit_code, "An error that nobody foresaw.", VadplabError.advice)]
    print(HEAD)
    print("| code | exit | what happened | what to do |\n|---|---|---|---|")
    for code, exit_code, meaning, advice in sorted(set(rows)):
        print(f"| `{code}` | {exit_code} | {(meaning or '').strip().splitlines()[0]} | {advice} |")


if __name__ == "__main__":
    main()
