# SPDX-License-Identifier: MIT
"""`vadplab topology`: check a topology file, print its JSON schema."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from lab import topology
from lab.cli.options import Json
from lab.cli.output import Out

app = typer.Typer(no_args_is_help=True)


@app.command()
def validate(
    file: Annotated[Path | None, typer.Argument(help="A topology file or a shipped name (default: demo).")] = None,
    json: Json = False,
) -> None:
    """Check a topology file; every problem is one line with file and line number."""
    out = Out(json)
    path = topology.find(file)
    found = topology.load(path)
    counts = {"hosts": len(found.hosts), "vms": len(found.vsphere.vms), "jobs": len(found.backup.jobs)}
    out.document("topology.validate/1", {"file": str(path), "name": found.name, "valid": True, **counts})
    out.text(f"{path.name} is good: " + ", ".join(f"{count} {what}" for what, count in counts.items()))


@app.command()
def schema(json: Json = False) -> None:
    """Print the JSON schema of topology files, for editors (with --json wrapped in one document of ours)."""
    if json:
        Out(json).document("topology.schema/1", {"json_schema": topology.schema()})
    else:
        print(json_module.dumps(topology.schema(), indent=2))
