# SPDX-License-Identifier: MIT
"""Tables on a narrow terminal: nothing is cut off, and what names a row stays whole, so that it can be copied."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from lab.cli.flows import render
from lab.cli.output import Out

RUN = "20261125T091905-job-2d64e5"


def narrow(out: Out, width: int) -> io.StringIO:
    said = io.StringIO()
    out.console = Console(file=said, width=width, highlight=False)
    return said


def test_the_first_column_is_never_broken() -> None:
    out = Out(as_json=False)
    said = narrow(out, 50)
    out.table(("run", "evidence", "problems"), [(RUN, "consistent", "a long tale of woe " * 3)])
    assert RUN in said.getvalue()
    assert "…" not in said.getvalue()


def shown(width: int, **parts: Any) -> str:
    """`flows` of a document with these parts, on a terminal of that width."""
    document: dict[str, Any] = {"run": RUN, "kind": "job", "result": "consistent", "exit_code": 0}
    document |= {"steps": [], "flows": [], "tasks": [], "foreign": [], "invariants": {}, "problems": []}
    out = Out(as_json=False)
    said = narrow(out, width)
    render(out, document | {"capture": {"complete": True}} | parts)
    return said.getvalue()


def flow_of_step_7(**fields: Any) -> dict[str, Any]:
    flow: dict[str, Any] = {"flow": 1, "step": "7", "steps": ["7", "21"], "row": "D1", "rule": "D1"}
    flow |= {"initiator": "proxy-1", "responder": "repository-1", "port": 2503, "protocol": "tcp", "bytes": 12_456_546}
    flow |= {"verdict": "allowed", "symptom": "SYN forwarded, SYN-ACK came back", "start": 2_000_000_000}
    return flow | {"consistent": True, "disagreements": [], "witnesses": {"packets": "allowed"}} | fields


def step(name: str, phase: str, title: str, flows: list[int], **fields: Any) -> dict[str, Any]:
    found = {"step": name, "phase": phase, "title": title, "flows": flows, "status": "done", "text": "", "evidence": []}
    return found | {"begin": 1_000_000_000} | fields


STEPS = [
    step("7", "initialisation", "Data Movers connect to each other", [1]),
    step("9", "guest processing", "Windows guest address", [], status="skipped", text="no Windows guest"),
    step("21", "transport", "Blocks go to the repository on the connection of step 7", [1]),
]


def test_a_connection_stands_below_its_step_in_one_line_of_80_columns() -> None:
    lines = [" ".join(line.split()) for line in shown(80, steps=STEPS, flows=[flow_of_step_7()]).splitlines()]
    opened = lines.index("1.000 proxy-1 → repository-1:2503 D1 12,456,546 --.- allowed")
    assert lines[opened - 1] == "7 0.000 Data Movers connect to each other"
    assert "done proxy-1 → repository-1:2503 (open since step 7)" in lines
    assert "skipped no Windows guest" in lines


def test_what_decided_and_what_the_packets_show_is_told_where_it_was_not_allowed() -> None:
    refused = flow_of_step_7(verdict="refused", rule="block-1", symptom="the router answered with a reset")
    text = shown(80, steps=STEPS, flows=[refused])
    assert "decided by block-1; the router answered with a reset" in text
    doubted = flow_of_step_7(consistent=False, disagreements=["the event says refused"])
    assert "inconsistent the event says refused" in shown(80, steps=STEPS, flows=[doubted])


def test_flows_keep_hosts_and_ports() -> None:
    flow = flow_of_step_7(symptom="open before the capture began")
    table = shown(48, foreign=[flow]).partition("foreign packets")[2]
    assert "…" not in table
    ends = "".join(line[: line.index(" ") if " " in line else None] for line in table.splitlines())
    assert "2503" in ends


def test_words_and_numbers_stay_whole_as_long_as_they_fit() -> None:
    out = Out(as_json=False)
    said = narrow(out, 80)
    columns = ["rule", "from", "to", "port", "does", "packets", "what for"]
    purpose = "console starts jobs and restores and rescans"
    out.table(
        columns,
        [
            ("C1", "console", "backup_server", "22", "allow", 0, "-"),
            ("M4", "backup_server", "proxy, repository", "2500-3300", "allow", 12345, purpose),
        ],
    )
    lines = said.getvalue().splitlines()
    words = {word for line in lines for word in line.split()}
    assert {"backup_server", "repository", "2500-3300", "12345", *purpose.split()} <= words
    assert max(map(len, lines)) <= 80 and len(lines) <= 6
