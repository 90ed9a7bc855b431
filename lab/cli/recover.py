# SPDX-License-Identifier: MIT
"""`vadplab recover`: instant recovery: a restore point's disks served over NBD until Ctrl-C; recorded and judged like a job.

The disks are served by the repository, over TLS; clients on the lab's console host use the printed URIs:
`vadplab exec console -- nbdcopy 'nbds://…' disk.img`. What clients write is gone at the end; the point does not change.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from lab.cli import recorded
from lab.cli.options import Json, running_lab
from lab.cli.output import Out
from lab.cli.points import find
from lab.cli.progress import Progressing

app = typer.Typer()


@app.command("recover")
def recover(
    context: typer.Context,
    point: Annotated[str, typer.Argument(metavar="POINT", help="A restore point (`vadplab points`).")],
    disk: Annotated[
        list[int] | None, typer.Option("--disk", metavar="N", help="Number or key; repeatable (default: all disks).")
    ] = None,
    listen: Annotated[
        int | None,
        typer.Option(
            "--listen", metavar="PORT", min=1, max=65535, help="Port on the repository (default: a free mover port)."
        ),
    ] = None,
    vm: Annotated[str | None, typer.Option("--vm", help="When several VMs have a point of that name.")] = None,
    json: Json = False,
) -> None:
    """Serve a restore point's disks over NBD straight from the repository, until Ctrl-C. With --json: one document a line."""
    out = Out(json)
    lab = running_lab(context)
    _, manifest = find(lab, point, vm)
    argv = ["recover", point, "--vm", manifest.vm.name]
    for number in disk or []:
        argv += ["--disk", str(number)]
    argv += ["--port", str(listen)] if listen is not None else []
    with Progressing(out) as show_line:

        def on_line(line: dict[str, Any]) -> None:
            if line.get("kind") != "recovery":
                return show_line(line)
            # the engine calls its session a run; the run of the evidence gets its name at the end
            out.document("recovery/1", {k: v for k, v in line.items() if k not in ("schema", "kind", "run")})
            for one in line["disks"]:
                out.text(f"{escape(one['label'])}: [bold]{escape(one['uri'])}[/]")
            out.text("[dim]Ctrl-C ends it; what was written is gone then.[/]")

        done = recorded.run(lab, "restore", argv, on_line)
    document = {k: v for k, v in done.document.items() if k != "schema"} | done.evidence()
    out.document("recover/1", document)
    if error := document.get("error"):
        out.text(
            f"[red]\\[{error['code']}][/] {escape(str(error['message']))}\n  [dim]next: {escape(str(error['next']))}[/]"
        )
    done.say(out)
    raise typer.Exit(done.exit_code)
