# SPDX-License-Identifier: MIT
"""`vadplab shell`: a shell on a host."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from lab.cli import remote
from lab.cli.options import Json, running_lab

app = typer.Typer()


@app.command()
def shell(
    context: typer.Context,
    host: Annotated[str, typer.Argument(help="A host of the lab.")],
    json: Json = False,
) -> None:
    """Open a shell ($SHELL, else /bin/sh) on a host; commands are read from standard input if that is no terminal."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    program = os.environ.get("SHELL") or "/bin/sh"
    raise typer.Exit(remote.run(running_lab(context), host, [program], interactive=interactive))
