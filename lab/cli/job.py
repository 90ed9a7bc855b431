# SPDX-License-Identifier: MIT
"""`vadplab job`: list, show, run and stop backup jobs. They are typed on the lab's console host and go over 9392."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape

from engine.modes import names
from lab.cli import administration, console, recorded
from lab.cli.options import Json, running_lab
from lab.cli.output import Out
from lab.cli.progress import Progressing

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The job's name.")]


class Mode(StrEnum):
    """Transport modes. `auto` stands for Direct SAN, HotAdd and Network, in that order, as far as the proxies can."""

    AUTO = names.AUTO
    SAN = names.SAN
    HOTADD = names.HOTADD
    NBDSSL = names.NBDSSL
    NBD = names.NBD


class Direction(StrEnum):
    """Who opens the connection between the Data Movers."""

    PROXY_TO_REPOSITORY = "proxy-to-repository"
    REPOSITORY_TO_PROXY = "repository-to-proxy"


@app.command("list")
def list_jobs(context: typer.Context, json: Json = False) -> None:
    """The jobs that the Backup Service knows."""
    out = Out(json)
    code, document = console.run(running_lab(context), ["job", "list"])
    console.finish(out, code, document, "job-list/1")
    out.table(
        ("job", "VMs", "mode", "direction"),
        ((j["name"], ", ".join(j["vms"]), j["mode"], j["direction"]) for j in document["jobs"]),
    )


@app.command()
def show(context: typer.Context, name: Name, json: Json = False) -> None:
    """One job with its VMs and disks."""
    out = Out(json)
    code, document = console.run(running_lab(context), ["job", "show", name])
    console.finish(out, code, document, "job/1")
    job = document.get("job", document)
    out.table(("what", "value"), administration.rows({key: value for key, value in job.items() if key != "schema"}))


@app.command()
def run(
    context: typer.Context,
    name: Name,
    mode: Annotated[Mode | None, typer.Option("--mode", help="Transport mode (default: the job's).")] = None,
    direction: Annotated[
        Direction | None,
        typer.Option("--data-direction", help="Which Data Mover opens the data connection (default: the job's)."),
    ] = None,
    failover: Annotated[
        bool | None,
        typer.Option("--failover/--no-failover", help="Whether another mode may take over (default: the job's)."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Read every disk whole: a new full restore point.")] = False,
    json: Json = False,
) -> None:
    """Run a job, record its connections and judge them. Ctrl-C stops the job cleanly: thaw, commit, exit 1."""
    out = Out(json)
    argv = ["job", "run", name]
    argv += ["--mode", mode.value] if mode else []
    argv += ["--data-direction", direction.value] if direction else []
    argv += [] if failover is None else ["--failover" if failover else "--no-failover"]
    argv += ["--full"] if full else []
    with Progressing(out) as show_line:
        done = recorded.run(running_lab(context), "job", argv, show_line)
    # When nobody answered the console, the Backup Service has said nothing of points: there is none of this run.
    out.document("job-run/1", {"restore_points": [], **console.without_schema(done.document), **done.evidence()})
    _say(out, name, done.document)
    done.say(out)
    raise typer.Exit(done.exit_code)


@app.command()
def stop(context: typer.Context, name: Name, json: Json = False) -> None:
    """Stop a running job: guests thaw, snapshots are committed."""
    out = Out(json)
    code, document = console.run(running_lab(context), ["job", "stop", name])
    console.finish(out, code, document, "job-stop/1")
    out.text(f"{name}: stopped")


def _say(out: Out, name: str, document: dict[str, Any]) -> None:
    colour = {"success": "green", "warning": "yellow"}.get(str(document.get("result")), "red")
    out.text(f"[{colour}]{name}: {document.get('result', 'failed')}[/]")
    for error in [document.get("error"), *document.get("warnings", [])]:
        if error:
            step = f"step {error['step']}: " if error.get("step") else ""
            out.text(escape(f"  [{error['code']}] {step}{error['message']}"))
            out.text(f"  [dim]next: {error['next']}[/]")
    for point in document.get("restore_points", []):
        kind = f"{point['kind']}, " if point.get("kind") else ""
        out.text(f"  restore point {point['point']} of {point['vm']}: {kind}{point['consistency']}-consistent")
    for task in (t for vm in document.get("vms", []) for t in vm.get("tasks", [])):
        how = f", read by {task['read']} ({task['reason']})" if task.get("read") else ""
        failed = "".join(f"; {f['mode']} was not possible: {f['message']}" for f in task.get("failed_over") or [])
        text = f"{task['task']}: {task.get('mode') or 'not opened'}{how}{failed}"
        out.text(f"  [dim]{escape(text)}[/]")


administration.add(app, "job", administration.JOB)
