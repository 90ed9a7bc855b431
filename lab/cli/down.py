# SPDX-License-Identifier: MIT
"""`vadplab down`: take a lab down."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from lab.cli.options import Json, any_lab, running_lab
from lab.cli.output import Out
from lab.realise import lifecycle

app = typer.Typer()


@app.command()
def down(
    context: typer.Context,
    force: Annotated[bool, typer.Option("--force", help="Kill the supervisor instead of asking it.")] = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove the lab's folder as well, runs and restore points included.")
    ] = False,
    json: Json = False,
) -> None:
    """Take a lab down. No process, namespace, link, mount or rule stays; its folder does, unless --purge."""
    out = Out(json)
    lab = any_lab(context) if purge else running_lab(context)
    begun = time.monotonic()
    was_running = lab.running()
    if was_running:
        lifecycle.down(lab, force=force)
    if purge:
        lab.purge()
    seconds = round(time.monotonic() - begun, 3)
    out.document("down/1", {"name": lab.name, "was_running": was_running, "purged": purge, "seconds": seconds})
    what = "is down" if was_running else "was down"
    out.text(
        f"the lab [bold]{lab.name}[/] {what}"
        + (", its folder is removed" if purge else f"; its folder stays: {lab.path}")
    )
