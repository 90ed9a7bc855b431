# SPDX-License-Identifier: MIT
"""`python -m bench`: runs the measurements, prints a table, and JSON when asked."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

import bench
from bench.rows import Goal, Options, Result, Row, Stage

SCHEMA = "vadplab.bench/1"
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def measurements() -> dict[str, ModuleType]:
    """Modules of this package that have a title and can run."""
    found = {}
    for info in pkgutil.iter_modules(bench.__path__):
        if not info.name.startswith("_"):
            module = importlib.import_module(f"bench.{info.name}")
            if hasattr(module, "TITLE") and hasattr(module, "run"):
                found[info.name] = module
    return found


def size(text: str) -> int:
    """Bytes from `512MiB`."""
    for unit, factor in _UNITS.items():
        if text.endswith(unit) and text.removesuffix(unit).isdigit():
            return int(text.removesuffix(unit)) * factor
    raise argparse.ArgumentTypeError(f"not a size: {text} (for example 512MiB)")


def table(title: str, rows: list[Row]) -> Table:
    """Ratios first: they are what can be trusted from machine to machine."""
    references = list(dict.fromkeys(name for row in rows for name in row.ratios))
    found = Table(title=title)
    found.add_column("subject")
    for name in references:
        found.add_column(f"× {name}", justify="right")
    for name in ("seconds", "MiB/s", "out MiB", "CPU s"):
        found.add_column(name, justify="right")
    found.add_column("note")
    for row in rows:
        ratios = [f"{row.ratios[name]:.2f}" if name in row.ratios else "1" for name in references]
        out = "" if row.out_mib is None else f"{row.out_mib:.0f}"
        cpu = f"{sorted(row.cpu_seconds)[len(row.cpu_seconds) // 2]:.1f}" if row.cpu_seconds else ""
        rate = f"{row.rate:.0f}" if row.mib else ""
        found.add_row(row.name, *ratios, f"{row.median:.2f}", rate, out, cpu, row.note)
    return found


def goal_table(goals: list[Goal]) -> Table:
    """What was wanted and what was found."""
    found = Table(title="goals")
    for name in ("goal", "found", "met"):
        found.add_column(name)
    for goal in goals:
        found.add_row(goal.text, f"{goal.found:.3g}", "yes" if goal.met else "NO")
    return found


def stage_table(stages: list[Stage]) -> Table:
    """Where the time goes."""
    found = Table(title="where the time goes")
    for name in ("subject", "half", "stage", "wall s", "CPU s", "calls"):
        found.add_column(name)
    for stage in stages:
        found.add_row(
            stage.subject,
            stage.half,
            stage.stage,
            *(f"{each:.3f}" if each else "" for each in (stage.wall, stage.cpu)),
            str(stage.calls),
        )
    return found


def show(console: Console, title: str, result: Result) -> None:
    """Tables of one measurement: a table a group, goals, profile."""
    for group in dict.fromkeys(row.group for row in result.rows):
        rows = [row for row in result.rows if row.group == group]
        console.print(table(f"{title}: {group}" if group else title, rows))
    if result.goals:
        console.print(goal_table(result.goals))
    if result.stages:
        console.print(stage_table(result.stages))


def main(argv: list[str]) -> int:
    """Exit code 0; 2 for an unknown measurement; 3 when a tool to compare with is missing."""
    known = measurements()
    parser = argparse.ArgumentParser(prog="python -m bench", description=bench.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"measurements ({', '.join(known)}; default: all)")
    parser.add_argument("--size", type=size, default=size("1GiB"), help="size of the test disk (default: 1GiB)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each subject once a round (default: 3)")
    parser.add_argument("--json", type=Path, help="also write the results there (- : standard output, no tables)")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"unknown measurement {', '.join(unknown)}")
    missing = [
        f"{name}: {tool} is missing: apt-get install {package}\n"
        for name in options.names or known
        for tool, package in getattr(known[name], "TOOLS", {}).items()
        if shutil.which(tool) is None
    ]
    if missing:
        sys.stderr.write("".join(missing))
        return 3
    console = Console(stderr=str(options.json) == "-", width=220)
    results = []
    before = os.getloadavg()[0]
    for name in options.names or known:
        with tempfile.TemporaryDirectory(prefix="vadplab-bench-") as scratch:
            given = known[name].run(Options(options.size, options.rounds, Path(scratch)))
        result = given if isinstance(given, Result) else Result(given)
        show(console, known[name].TITLE, result)
        results.append(
            {
                "name": name,
                "title": known[name].TITLE,
                "rows": [row.to_dict() for row in result.rows],
                "goals": [goal.to_dict() for goal in result.goals],
                "stages": [asdict(stage) for stage in result.stages],
            }
        )
    console.print(f"load of the machine: {before:.1f} before, {os.getloadavg()[0]:.1f} after")
    if options.json:
        document = {
            "schema": SCHEMA,
            "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
            "load": {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
            "size": options.size,
            "rounds": options.rounds,
            "measurements": results,
        }
        text = json.dumps(document, indent=2) + "\n"
        sys.stdout.write(text) if str(options.json) == "-" else options.json.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
