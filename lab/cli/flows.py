# SPDX-License-Identifier: MIT
"""`vadplab flows [RUN]`: the steps of a run in order, who connected to whom, what decided, and who saw it."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from firewall_rules.verdict import Verdict
from lab.cli.options import Json, any_lab
from lab.cli.output import Out
from lab.observe import runs as run_folders

app = typer.Typer()

WITNESSES = ("event", "counter", "packets", "socket")
_ARROW = "initiator → responder:port"
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
    console.print(f"run {escape(str(document['run']))} ({document['kind']}): [{colour}]{document['result']}[/]\n")
    console.print(_steps(document, console.width))
    console.print(
        "\n[dim]seen by event, counter, packets, socket: . allowed  R refused  P prohibited\n"
        "T timed out  ? not attempted  ! could not check  - not applicable[/]"
    )
    if document.get("tasks"):
        console.print("\n[bold]tasks[/]")
        console.print(_tasks(document["tasks"]))
    idle = [f for f in document["flows"] if f["verdict"] == Verdict.NOT_ATTEMPTED and f["start"] is None]
    if idle:
        console.print("\n[bold]rows that nobody attempted, and what the rules in force would have done[/]")
        console.print(_idle(idle))
    if document["foreign"]:
        console.print("\n[bold]foreign packets[/] (no event of this run explains them)")
        console.print(_foreign(document["foreign"]))
    console.print()
    console.print(_invariants(document["invariants"]))
    for problem in document["problems"]:
        console.print(f"[red]{problem['code']}[/] {escape(problem['message'])}")


def _steps(document: dict[str, Any], width: int) -> Table:
    """The steps by phase; below each the connections that it opened, or the words that tell what became of it."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=True)
    table.add_column("step", no_wrap=True)
    table.add_column("at s", justify="right", no_wrap=True)
    by_number = {f["flow"]: f for f in document["flows"]}
    of_step = {s["step"]: [by_number[n] for n in s["flows"] if n in by_number] for s in document["steps"]}
    lines = _FlowLines([f for mine in of_step.values() for f in mine], width - len("step  123.456  "))
    table.add_column(lines.header(), overflow="fold")
    begins = [s["begin"] for s in document["steps"] if s["begin"]]
    begins += [f["start"] for f in document["flows"] if f["start"]]
    origin = min(begins, default=0)
    phase = None
    for step in document["steps"]:
        if step["phase"] != phase:
            phase = step["phase"]
            table.add_row("", "", f"[bold cyan]{escape(phase)}[/]")
        mine = of_step[step["step"]]
        opened = [f for f in mine if f["step"] == step["step"]]
        idle = step["status"] in ("skipped", "not reached")
        title = f"[dim]{escape(step['title'])}[/]" if idle else escape(step["title"])
        table.add_row(step["step"], _at(step["begin"], origin), title)
        for flow in opened:
            table.add_row("", _at(flow["start"], origin), lines.line(flow))
            if remark := _remark(flow):
                table.add_row("", "", remark)
        if not opened or step["status"] != "done":
            table.add_row("", "", _status(step, [f for f in mine if f not in opened]))
    return table


class _FlowLines:
    """Flows as lines of one width, so that their columns stand below each other."""

    def __init__(self, flows: list[dict[str, Any]], width: int) -> None:
        self._bytes = max([len("bytes"), *(len(f"{f['bytes']:,}") for f in flows)])
        verdict = max([len("verdict"), *(len(f["verdict"]) for f in flows)])
        arrow = max([len(_ARROW), *(len(_arrow(f)) for f in flows)])
        others = len("row") + self._bytes + len("seen") + verdict + 4 * 2
        self._arrow = max(min(arrow, width - others), 16)
        self._verdict = verdict

    def header(self) -> Table:
        return self._grid(_ARROW, "row", "bytes", "seen", "verdict")

    def line(self, flow: dict[str, Any]) -> Table:
        verdict = f"[{_COLOURS.get(flow['verdict'], 'red')}]{flow['verdict']}[/]"
        return self._grid(escape(_arrow(flow)), flow["row"] or "-", f"{flow['bytes']:,}", seen(flow), verdict)

    def _grid(self, *cells: str) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=self._arrow, overflow="fold")
        grid.add_column(width=len("row"), overflow="fold")
        grid.add_column(width=self._bytes, justify="right", overflow="fold")
        grid.add_column(width=len("seen"))
        grid.add_column(width=self._verdict, overflow="fold")
        grid.add_row(*cells)
        return grid


def _arrow(flow: dict[str, Any]) -> str:
    return f"{flow['initiator']} → {flow['responder']}:{flow['port']}"


def _remark(flow: dict[str, Any]) -> str:
    """What is not as everywhere: another rule than the row's own decided, it ended otherwise, witnesses disagree."""
    said = []
    if flow["rule"] != flow["row"]:
        said.append(f"decided by {escape(flow['rule'] or 'nothing')}")
    if flow["verdict"] != Verdict.ALLOWED or "cut" in flow["symptom"]:
        said.append(escape(flow["symptom"]))
    remarks = [f"[dim]{'; '.join(said)}[/]"] if said else []
    if not flow["consistent"]:
        remarks.append(f"[bold red]inconsistent[/] {escape('; '.join(flow['disagreements']))}")
    return "; ".join(remarks)


def seen(flow: dict[str, Any]) -> str:
    """One glyph for each witness: event, counter, packets, socket."""
    said = [flow["witnesses"].get(w, "not applicable") for w in WITNESSES]
    return "".join(Verdict(s).glyph if s in set(Verdict) else "-" for s in said)


def _status(step: dict[str, Any], used: list[dict[str, Any]]) -> Table:
    """How the step ended, where it worked, what it used: for steps whose connections do not say it."""
    status = step["status"]
    said = ""
    if status in ("failed", "interrupted", "skipped", "not reached"):
        said = step["text"]
    elif used:
        since = ", ".join(dict.fromkeys(f["step"] or "?" for f in used))
        said = f"{_ends(used)} (open since step {since})"
    elif step["evidence"]:
        said = step["evidence"][0]["text"]
    colour = _STATUS.get(status, "red")
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_row(f"[{colour}]{status}[/]", escape(said) if colour == "red" else f"[dim]{escape(said)}[/]")
    return line


def _ends(flows: list[dict[str, Any]]) -> str:
    """`proxy-1 → repository-1:2500, 2501`: the ports of one pair of hosts together."""
    ports: dict[str, list[str]] = {}
    for flow in flows:
        ports.setdefault(f"{flow['initiator']} → {flow['responder']}", []).append(str(flow["port"]))
    return "; ".join(f"{pair}:{', '.join(dict.fromkeys(found))}" for pair, found in ports.items())


def _tasks(tasks: list[dict[str, Any]]) -> Table:
    """Two lines a task: who read it and how; how much, and over which paths."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for task in tasks:
        how = f"read by {task['read']}" + (f" ({task['reason']})" if task["reason"] else "") if task["read"] else ""
        words = [task["proxy"], task["mode"] or "not opened", how]
        table.add_row(escape(task["task"]), escape(", ".join(word for word in words if word)))
        paths = [
            f"{task[key]:,} bytes {over}"
            for key, over in (
                ("bytes_read", "read"),
                ("bytes_902", "over 902"),
                ("bytes_3260", "over 3260"),
                ("bytes_data", "to the repository"),
            )
            if task[key]
        ]
        if paths:
            table.add_row("", f"[dim]{', '.join(paths)}[/]")
        for failover in task["failovers"]:
            table.add_row("", f"[yellow]not by {escape(str(failover['mode']))}[/]: {escape(str(failover['reason']))}")
    return table


def _idle(idle: list[dict[str, Any]]) -> Table:
    """Two lines a row: the path and its prediction; when the row is needed."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for flow in idle:
        steps = f"step{'s' if len(flow['steps']) > 1 else ''} {', '.join(flow['steps'])}"
        table.add_row(flow["row"] or "-", f"{escape(_arrow(flow))}  {flow['predicted']}  [dim]{steps}[/]")
        table.add_row("", f"[dim]{escape(flow['symptom'])}[/]")
    return table


def _foreign(foreign: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (_ARROW, "protocol", "rule", "verdict", "what the packets show"):
        # Folded, never cut: a narrow terminal must not lose a port.
        table.add_column(column, overflow="fold")
    for flow in foreign:
        cells = (_arrow(flow), flow["protocol"], flow["rule"] or "-", flow["verdict"], flow["symptom"])
        table.add_row(*map(escape, cells))
    return table


def _invariants(invariants: dict[str, str]) -> str:
    """Those that held in one line, the others by name."""
    by_state = {state: [i for i, found in invariants.items() if found == state] for state in _STATES}
    said = [f"[{_STATES[state]}]{state}[/] {' '.join(names)}" for state, names in by_state.items() if names]
    return f"[bold]invariants[/]: {'; '.join(said) or 'none'}"


def _at(utc: int | None, origin: int) -> str:
    return f"{(utc - origin) / 1e9:.3f}" if utc else ""
