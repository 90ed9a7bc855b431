# SPDX-License-Identifier: MIT
"""`vadplab exec`: run a command on a host."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.errors import VadplabError
from lab.cli import remote
from lab.cli.options import Json, running_lab
from lab.cli.output import Out

OUR_FAILURE = 255

app = typer.Typer()


@app.command("exec")
def execute(
    context: typer.Context,
    host: Annotated[str, typer.Argument(help="A host of the lab.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="The command and its arguments.")],
    json: Json = False,
) -> None:
    """Run a command on a host, with this terminal's streams. Its exit code is passed on; 255 is a failure of ours.

    With --json the command's own output goes where it always goes; only an error of ours is a JSON document.
    """
    try:
        code = remote.run(running_lab(context), host, command)
    except VadplabError as exc:
        Out(json).error(exc)
        code = OUR_FAILURE
    raise typer.Exit(code)
