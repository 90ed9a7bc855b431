# SPDX-License-Identifier: MIT
"""What commands share: the chosen lab and the `--json` flag."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from lab.realise import folders
from lab.realise.folders import LabFolder

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document with a schema name instead of text.")]


@dataclass(frozen=True, slots=True)
class Root:
    """What stands before the command: the lab's name, and the command line as a whole."""

    lab: str | None = None
    argv: list[str] = field(default_factory=list)


def root(context: typer.Context) -> Root:
    """The options before the command."""
    found = context.find_root().obj
    return found if isinstance(found, Root) else Root()


def running_lab(context: typer.Context) -> LabFolder:
    """The running lab that this command means; errors as in `folders.select`."""
    return folders.select(root(context).lab, running=True)


def any_lab(context: typer.Context) -> LabFolder:
    """The lab, running or not, that this command means; errors as in `folders.select`."""
    return folders.select(root(context).lab, running=False)


def new_lab(context: typer.Context) -> LabFolder:
    """The lab that `up` makes."""
    return folders.folder(root(context).lab or folders.DEFAULT_NAME)


def absolute(path: Path) -> Path:
    """The absolute path of a file or folder that the user named; whether it is there is for the command to say."""
    return path.expanduser().absolute()
