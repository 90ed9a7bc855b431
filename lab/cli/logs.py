# SPDX-License-Identifier: MIT
"""`vadplab logs`: logs of a host's processes, also of a lab that is down."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.errors import MissingError
from lab.cli.options import Json, any_lab
from lab.cli.output import Out
from lab.errors import HostUnknown

app = typer.Typer()


class NoLog(MissingError):
    """There is no log of that process."""

    code = "lab.no-log"
    advice = "`vadplab logs HOST` shows every log of a host."


@app.command()
def logs(
    context: typer.Context,
    host: Annotated[
        str, typer.Argument(help="A host of the lab; `fabric` for what is on no host, `lab` for the supervisor.")
    ],
    process: Annotated[str | None, typer.Argument(help="One process; default: all of the host's.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Only the last lines of each log.")] = 200,
    json: Json = False,
) -> None:
    """Print the logs of a host's processes."""
    out = Out(json)
    lab = any_lab(context)
    if host == "lab":
        files = [lab.supervisor_log]
    else:
        folder = lab.host(host) / "log"
        if "/" in host or not folder.is_dir():
            known = sorted(path.name for path in (lab.path / "hosts").glob("*"))
            raise HostUnknown(f"no host {host}; the hosts are {', '.join(known)}", host=host)
        files = sorted(folder.glob("*.log"))
    if process is not None:
        files = [file for file in files if file.stem == process]
        if not files:
            raise NoLog(f"{host} has no log of a process {process}", host=host)
    found = [{"process": file.stem, "path": str(file), "lines": _tail(file, lines)} for file in files]
    out.document("logs/1", {"host": host, "logs": found})
    if json:
        return
    for log in found:
        if len(found) > 1:
            print(f"==> {log['process']} <==")
        for line in log["lines"]:
            print(line)


def _tail(path: Path, lines: int) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []
