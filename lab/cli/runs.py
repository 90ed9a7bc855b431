# SPDX-License-Identifier: MIT
"""`vadplab runs`: the runs of a lab, with what their evidence says."""

from __future__ import annotations

import json as jsonlib
from datetime import UTC, datetime
from typing import Any

import typer

from lab.cli.options import Json, any_lab
from lab.cli.output import Out, size_text
from lab.observe.runs import RunFolder, every

app = typer.Typer()


@app.command()
def runs(context: typer.Context, json: Json = False) -> None:
    """List the runs, oldest first; works with the lab down."""
    out = Out(json)
    lab = any_lab(context)
    found = [describe(run) for run in every(lab.runs)]
    out.document("runs/1", {"lab": lab.name, "runs": found})
    if not found:
        out.text("this lab has no run yet")
        return
    out.table(
        ("run", "kind", "evidence", "flows", "problems", "size"),
        (
            (
                r["run"],
                r["kind"],
                r["evidence"],
                r["checked"],
                len(r["problems"]),
                size_text(r["size"]),
            )
            for r in found
        ),
    )


def describe(run: RunFolder) -> dict[str, Any]:
    """One run for the document: what `run.json` and `report.json` say."""
    report = _report(run)
    began = datetime.fromtimestamp(run.began / 1e9, UTC).isoformat(timespec="seconds") if run.began else None
    return {
        "run": run.name,
        "kind": run.about.get("kind"),
        "session": run.about.get("session"),
        "began": began,
        "complete": run.complete,
        "evidence": report.get("result") or ("not judged" if run.complete else "cut short"),
        "exit_code": report.get("exit_code"),
        "checked": report.get("checked"),
        "invariants": {name: i["state"] for name, i in report.get("invariants", {}).items()},
        "problems": report.get("problems", []),
        "size": run.size(),
        "folder": str(run.path),
    }


def _report(run: RunFolder) -> dict[str, Any]:
    try:
        found = jsonlib.loads((run.path / "report.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
