# SPDX-License-Identifier: MIT
"""`vadplab pcap [RUN]`: where the capture of a run is and how to open it with its TLS keys and packet comments."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from lab.cli.options import Json, any_lab
from lab.cli.output import Out
from lab.observe import runs as run_folders
from lab.observe.errors import EvidenceMissing

app = typer.Typer()


@app.command()
def pcap(
    context: typer.Context,
    run: Annotated[str | None, typer.Argument(help="The run (default: the latest).")] = None,
    json: Json = False,
) -> None:
    """The capture of a run: path, TLS keys, and the commands that open it; works with the lab down."""
    out = Out(json)
    found = run_folders.find(any_lab(context).runs, run)
    capture, keys = found.path / "capture.pcapng", found.path / "keys.log"
    if not capture.is_file():
        raise EvidenceMissing(f"{found.name}: there is no capture")
    recorded = found.about.get("capture") or {}
    options = f"-r {shlex.quote(str(capture))} -o {shlex.quote(f'tls.keylog_file:{keys}')}"
    commands = {
        "wireshark": f"wireshark {options}",
        "tshark": f"tshark {options}",
        "comments": f"tshark {options} -Y frame.comment -T fields -e frame.number -e frame.comment",
    }
    out.document(
        "pcap/1",
        {
            "run": found.name,
            "capture": str(capture),
            "keys": str(keys) if keys.is_file() else None,
            "mode": recorded.get("mode"),
            "received": recorded.get("received"),
            "dropped": recorded.get("dropped"),
            "complete": bool(recorded.get("flushed")) and not recorded.get("dropped"),
            "annotated": (found.path / "capture.annotated").exists(),
            "size": capture.stat().st_size,
            "commands": commands,
        },
    )
    out.text(str(capture))
    for command in commands.values():
        out.text(f"  {command}")
    if recorded.get("mode") != "full":
        out.text("only headers were kept: to decrypt TLS, bring the lab up with `--capture full` before the run")
