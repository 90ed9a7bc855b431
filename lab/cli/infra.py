# SPDX-License-Identifier: MIT
"""`vadplab infra`: what the Backup Service manages, and reading it anew."""

from __future__ import annotations

import typer

from lab.cli import administration, console, recorded
from lab.cli.options import Json, running_lab
from lab.cli.output import Out
from lab.cli.progress import Progressing

app = typer.Typer(no_args_is_help=True)


@app.command()
def show(context: typer.Context, json: Json = False) -> None:
    """vCenters, managed servers and VMs as the configuration database has them."""
    out = Out(json)
    code, document = console.run(running_lab(context), ["infra", "show"])
    console.finish(out, code, document, "infra/1")
    out.table(
        ("server", "roles", "address", "tasks", "state"),
        (
            (s["name"], ", ".join(s["roles"]), s["address"], s["max_tasks"], s.get("state", ""))
            for s in document.get("servers", [])
        ),
    )
    out.table(
        ("VM", "host", "disks", "power"),
        ((v["name"], v.get("host"), len(v.get("disks", [])), v.get("power")) for v in document.get("vms", [])),
    )


@app.command()
def rescan(context: typer.Context, json: Json = False) -> None:
    """Read the infrastructure anew: a run of its own, recorded and judged like a job."""
    out = Out(json)
    with Progressing(out) as show_line:
        done = recorded.run(running_lab(context), "rescan", ["infra", "rescan"], show_line)
    out.document("infra-rescan/1", {**{k: v for k, v in done.document.items() if k != "schema"}, **done.evidence()})
    error = done.document.get("error")
    if error:
        out.text(f"[red]\\[{error['code']}][/] {error['message']}")
    done.say(out)
    raise typer.Exit(done.exit_code)


administration.add(app, "infra", administration.INFRA)
