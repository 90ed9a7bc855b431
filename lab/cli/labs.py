# SPDX-License-Identifier: MIT
"""`vadplab labs`: every lab that has a folder."""

from __future__ import annotations

import typer

from lab.cli.options import Json
from lab.cli.output import Out
from lab.realise import folders

app = typer.Typer()


@app.command()
def labs(json: Json = False) -> None:
    """List the labs: name, whether it runs, folder."""
    out = Out(json)
    found = []
    for lab in folders.existing():
        state, running = lab.state(), lab.running()
        phase = str(state.get("phase", "unknown"))
        if not running and phase in ("up", "starting"):
            phase = "killed"  # nobody was left to write it down
        found.append(
            {
                "name": lab.name,
                "running": running,
                "phase": phase,
                "topology": state.get("topology"),
                "folder": str(lab.path),
            }
        )
    out.document("labs/1", {"labs": found})
    if not found:
        out.text(f"there is no lab below {folders.home()}")
        return
    out.table(["lab", "state", "folder"], [(lab["name"], lab["phase"], lab["folder"]) for lab in found])
