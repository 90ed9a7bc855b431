# SPDX-License-Identifier: MIT
"""`vadplab rest`: tokens of the REST service (9419)."""

from __future__ import annotations

import typer

from lab.cli import administration

app = typer.Typer(no_args_is_help=True)


@app.callback()
def rest() -> None:
    """The Backup Service's REST interface on 9419: tokens for its clients."""


administration.add(app, "rest", administration.REST)
