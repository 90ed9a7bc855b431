# SPDX-License-Identifier: MIT
"""`vadplab status`: hosts, addresses and processes of a lab."""

from __future__ import annotations

from typing import Any

import typer

from lab.cli.options import Json, running_lab
from lab.cli.output import Out
from lab.realise.control import call

app = typer.Typer()


@app.command()
def status(context: typer.Context, json: Json = False) -> None:
    """Show the hosts of a running lab, with the processes on them."""
    out = Out(json)
    lab = running_lab(context)
    document: dict[str, Any] = call(lab.control_socket, "status")
    out.document("status/1", document)
    facts = [f"topology {document['topology']}", f"as {document['mode']}"]
    facts += [f"{key} {document[key]}" for key in ("policy", "vcsim") if document.get(key)]
    out.text(f"the lab [bold]{lab.name}[/] is {document['state']} ({', '.join(facts)})")
    fabric = {"name": "fabric", "role": "-", "zone": "-", "address": None, "processes": document["fabric"]}
    out.table(
        ["host", "role", "zone", "address", "processes"],
        [
            (host["name"], host["role"], host["zone"], host["address"] or "no network", _processes(host["processes"]))
            for host in [*document["hosts"], fabric]
        ],
    )


def _processes(processes: list[dict[str, Any]]) -> str:
    return ", ".join(p["name"] if p["state"] == "running" else f"{p['name']} (ended, {p['code']})" for p in processes)
