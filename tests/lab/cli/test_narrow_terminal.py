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


def test_flows_keep_hosts_and_ports() -> None:
    flow: dict[str, Any] = {"initiator": "proxy-1", "responder": "repository-1", "port": 2503, "protocol": "tcp"}
    flow |= {"rule": "D1", "verdict": "allowed", "symptom": "open before the capture began", "start": 1}
    document = {
        "run": RUN,
        "kind": "job",
        "result": "consistent",
        "exit_code": 0,
        "steps": [],
        "flows": [],
        "tasks": [],
    }
    document |= {"foreign": [flow], "invariants": {}, "capture": {"complete": True}, "problems": []}
    out = Out(as_json=False)
    said = narrow(out, 48)
    render(out, document)
    table = said.getvalue().partition("foreign packets")[2]
    assert "…" not in table
    ends = "".join(line[: line.index(" ") if " " in line else None] for line in table.splitlines())
    assert "2503" in ends
