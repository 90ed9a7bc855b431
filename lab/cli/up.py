# SPDX-License-Identifier: MIT
"""`vadplab up`: bring a lab up."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from firewall_rules.load import load_policy
from lab import topology
from lab.cli.options import Json, new_lab
from lab.cli.output import Out
from lab.realise import lifecycle
from lab.realise.launch import Launch

app = typer.Typer()


class Capture(StrEnum):
    """How much of each packet a run keeps."""

    HEADERS = "headers"
    FULL = "full"


@app.command()
def up(
    context: typer.Context,
    topology_file: Annotated[
        Path | None,
        typer.Option("--topology", metavar="FILE", help="A topology file or a shipped name (default: demo)."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="A firewall policy (default: the shipped one).")
    ] = None,
    vcsim: Annotated[
        str | None,
        typer.Option(
            "--vcsim", metavar="SOURCE", help="Where vcsim comes from: a binary's path, `path`, `docker` or `built`."
        ),
    ] = None,
    capture: Annotated[
        Capture, typer.Option("--capture", help="`headers`: control packets and the first 256 bytes; `full`: all.")
    ] = Capture.HEADERS,
    empty: Annotated[bool, typer.Option("--empty", help="Hosts, links and firewall only, no daemons.")] = False,
    json: Json = False,
) -> None:
    """Bring a lab up. Returns when every part of it answers; the lab then runs by itself until `down`."""
    out = Out(json)
    lab = new_lab(context)
    file = topology.find(topology_file).absolute()
    topology.load(file)
    if policy is not None:
        load_policy(policy)
    launch = Launch(
        topology=file,
        policy=policy.absolute() if policy and policy.exists() else policy,
        vcsim=vcsim,
        capture=capture.value,
        world=not empty,
        cwd=str(Path.cwd()),
    )
    begun = time.monotonic()

    def progress(event: dict[str, Any]) -> None:
        facts = ", ".join(_fact(key, value) for key, value in event.items() if key not in ("done", "problem"))
        problem = event.get("problem")
        sign = "[yellow]![/]" if problem else "[green]✓[/]"
        out.notice(f"{sign} {event['done']}" + (f" [dim]({escape(facts)})[/]" if facts else ""))
        if problem:
            out.notice(f"  [yellow]not everything was read:[/] {escape(problem)}")
            out.notice("  [dim]next:[/] open the path (`vadplab firewall show`), then `vadplab infra rescan`")

    status = lifecycle.up(lab, launch, progress=progress)
    seconds = round(time.monotonic() - begun, 3)
    out.document("up/1", {**status, "seconds": seconds})
    out.text(f"the lab [bold]{lab.name}[/] is up after {seconds:.1f} s: {len(status['hosts'])} hosts")


def _fact(key: str, value: Any) -> str:
    match key:
        case "count":
            return str(value)
        case "ms":
            return f"{value / 1000:.1f} s"
        case _:
            return f"{key} {value}"
