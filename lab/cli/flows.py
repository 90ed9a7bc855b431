# SPDX-License-Identifier: MIT
"""`vadplab flows [RUN]`: the steps of a run in order, who connected to whom, what decided, and who saw it."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table

from firewall_rules.verdict import Verdict
from lab.cli.options import Json, any_lab
from lab.cli.output import Out
from lab.observe import runs as run_folders

app = typer.Typer()

WITNESSES = ("event", "counter", "packets", "socket")
_COLOURS = {"allowed": "green", "not attempted": "dim", "could not check": "yellow"}
_STATUS = {"done": "green", "failed": "red", "interrupted": "red", "skipped": "dim", "not reached": "dim"}
_STATES = {"held": "green", "broken": "bold red", "not applicable": "dim"}
_RESULTS = {0: "green", 1: "red", 3: "yellow", 4: "bold red"}


@app.command()
def flows(
    context: typer.Context,
    run: Annotated[str | None, typer.Argument(help="The run (default: the latest).")] = None,
    again: Annotated[bool, typer.Option("--again", help="Judge the run anew from its evidence.")] = False,
    json: Json = False,
) -> None:
    """Steps and flows of a run with their verdicts; works with the lab down. Exit code: that of the evidence (0, 1, 3, 4)."""
    out = Out(json)
    document = judged(run_folders.find(any_lab(context).runs, run).path, again=again)
    out.document("flows/1", {k: v for k, v in document.items() if k != "schema"})
    if not json:
        render(out, document)
    raise typer.Exit(int(document["exit_code"]))


def judged(folder: Path, *, again: bool = False) -> dict[str, Any]:
    """flows.json of a run; judged now if nobody has yet.

    Raises:
        EvidenceMissing: the recording was cut short.
    """
    path = folder / "flows.json"
    if again or not path.is_file():
        from lab.judge.judge import judge

        (folder / "packets.jsonl").unlink(missing_ok=True)
        return judge(folder).to_flows()
    found = jsonlib.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def render(out: Out, document: dict[str, Any]) -> None:
    """Prints the document for people."""
    console = out.console
    colour = _RESULTS.get(int(document["exit_code"]), "red")
    console.print(f"run {escape(str(document['run']))} ({document['kind']}): [{colour}]{document['result']}[/]")
    console.print(_steps(document))
    console.print(
        "[dim]witnesses: event, counter, packets, socket; . allowed  R refused  P prohibited  T timed out  "
        "? not attempted  ! could not check  - not applicable[/]"
    )
    if document.get("tasks"):
        console.print("\ntasks")
        console.print(_tasks(document["tasks"]))
    idle = [f for f in document["flows"] if f["verdict"] == Verdict.NOT_ATTEMPTED and f["start"] is None]
    if idle:
        console.print("\nrows that nobody attempted")
        console.print(_idle(idle))
    if document["foreign"]:
        console.print("\nforeign packets (no event of this run explains them)")
        console.print(_foreign(document["foreign"]))
    console.print("\ninvariants: " + "  ".join(f"{i} [{_STATES[s]}]{s}[/]" for i, s in document["invariants"].items()))
    if not document["capture"]["complete"]:
        console.print(f"[yellow]the capture is not complete[/]: {escape(document['capture']['reason'])}")
    for problem in document["problems"]:
        console.print(f"[red]{problem['code']}[/] {escape(problem['message'])}")


def _steps(document: dict[str, Any]) -> Table:
    table = _table("step", "what", "at s", "initiator → responder:port", "row", "rule", "bytes", "seen", "verdict")
    by_number = {f["flow"]: f for f in document["flows"]}
    begins = [s["begin"] for s in document["steps"] if s["begin"]]
    begins += [f["start"] for f in document["flows"] if f["start"]]
    origin = min(begins, default=0)
    for step in document["steps"]:
        mine = [by_number[n] for n in step["flows"] if n in by_number]
        opened = [f for f in mine if f["step"] == step["step"]]
        title = step["title"]
        status = f"[{_STATUS.get(step['status'], 'red')}]{step['status']}[/]"
        if not mine:
            inside = _inside(step)
            table.add_row(step["step"], title, _at(step["begin"], origin), inside, "", "", "", "", status)
        for flow in opened:
            table.add_row(step["step"], title, _at(flow["start"], origin), *_flow_cells(flow))
            title = ""
        used = [f for f in mine if f not in opened]
        if used:
            ends = ", ".join(dict.fromkeys(f"{f['initiator']} → {f['responder']}:{f['port']}" for f in used))
            numbers = ", ".join(dict.fromkeys(f["step"] or "?" for f in used))
            text = f"[dim]{escape(ends)} (open since step {numbers})[/]"
            rows = ", ".join(dict.fromkeys(f["row"] or "" for f in used))
            table.add_row(step["step"], title, _at(step["begin"], origin), text, rows, "", "", "", status)
        if step["status"] in ("failed", "interrupted") and step["text"]:
            table.add_row("", "", "", f"[red]{escape(step['text'])}[/]", "", "", "", "", "")
    return table


def _flow_cells(flow: dict[str, Any]) -> list[str]:
    verdict = flow["verdict"]
    colour = _COLOURS.get(verdict, "red")
    text = f"[{colour}]{verdict}[/]"
    if verdict != Verdict.ALLOWED or "cut" in flow["symptom"]:
        text += f" [dim]{escape(flow['symptom'])}[/]"
    if not flow["consistent"]:
        text += " [bold red]inconsistent[/]"
    arrow = f"{flow['initiator']} → {flow['responder']}:{flow['port']}"
    return [escape(arrow), flow["row"] or "-", flow["rule"] or "-", f"{flow['bytes']:,}", seen(flow), text]


def seen(flow: dict[str, Any]) -> str:
    """One glyph for each witness: event, counter, packets, socket."""
    said = [flow["witnesses"].get(w, "not applicable") for w in WITNESSES]
    return "".join(Verdict(s).glyph if s in set(Verdict) else "-" for s in said)


def _inside(step: dict[str, Any]) -> str:
    if step["status"] in ("not reached", "skipped"):
        return f"[dim]{escape(step['text'])}[/]"
    evidence = step["evidence"][0]["text"] if step["evidence"] else step["text"]
    return f"[dim]local: {escape(evidence)}[/]" if step["local"] else escape(evidence)


def _tasks(tasks: list[dict[str, Any]]) -> Table:
    table = _table("task", "proxy", "mode", "read by", "bytes", "on 902", "on 3260", "data connection", "failover")
    for task in tasks:
        failovers = "; ".join(str(f["reason"]) for f in task["failovers"])
        counts = (task[key] for key in ("bytes_read", "bytes_902", "bytes_3260", "bytes_data"))
        numbers = [f"{count:,}" if count is not None else "-" for count in counts]
        how = f"{task['read'] or '-'}: {task['reason']}" if task["reason"] else str(task["read"] or "-")
        cells = (task["task"], task["proxy"] or "-", task["mode"] or "-", how, *numbers, failovers)
        table.add_row(*map(escape, cells))
    return table


def _idle(idle: list[dict[str, Any]]) -> Table:
    table = _table("row", "steps", "initiator → responder:port", "predicted", "condition")
    for flow in idle:
        arrow = f"{flow['initiator']} → {flow['responder']}:{flow['port']}"
        cells = (flow["row"] or "-", ", ".join(flow["steps"]), arrow, flow["predicted"], flow["symptom"])
        table.add_row(*map(escape, cells), style="dim")
    return table


def _foreign(foreign: list[dict[str, Any]]) -> Table:
    table = _table("initiator → responder:port", "protocol", "rule", "verdict", "what the packets show")
    for flow in foreign:
        arrow = f"{flow['initiator']} → {flow['responder']}:{flow['port']}"
        cells = (arrow, flow["protocol"], flow["rule"] or "-", flow["verdict"], flow["symptom"])
        table.add_row(*map(escape, cells))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: JustifyMethod = "right" if column in ("bytes", "at s") else "left"
        # Folded, never cut: a narrow terminal must not lose a port.
        table.add_column(column, justify=justify, no_wrap=column == "step", overflow="fold")
    return table


def _at(utc: int | None, origin: int) -> str:
    return f"{(utc - origin) / 1e9:.3f}" if utc else ""
