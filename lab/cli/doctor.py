# SPDX-License-Identifier: MIT
"""`vadplab doctor`: what is needed, what is missing, how to get it, what takes its place."""

from __future__ import annotations

import typer

from lab.cli.options import Json
from lab.cli.output import Out
from lab.realise import probe

MISSING = 3

app = typer.Typer()


@app.command()
def doctor(json: Json = False) -> None:
    """Check this machine for everything a lab needs. Ends with 3 when something needed is missing."""
    out = Out(json)
    found = probe.checks()
    missing = [check.name for check in found if check.state == "missing"]
    out.document("doctor/1", {"checks": [check.to_dict() for check in found], "missing": missing})
    for kind in ("component", "power", "port"):
        rows = [check for check in found if check.kind == kind]
        out.table(
            [kind, "state", "found, or what takes its place", "to get it"],
            [(check.name, check.state, check.detail, check.fix) for check in rows],
        )
    out.text(f"\n[red]missing: {', '.join(missing)}[/]" if missing else "\nnothing that a lab needs is missing")
    if missing:
        raise typer.Exit(MISSING)
