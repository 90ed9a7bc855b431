# SPDX-License-Identifier: MIT
"""A console command with evidence: the run is recorded while it goes on, and judged when it has ended.

What the engine says of itself (`document`) and what the packets prove (`report`) stay apart; the exit code is the
stronger of both (precedence of `lab.judge.report`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import VadplabError
from engine.events import new_id
from lab.cli import console
from lab.cli.output import Out
from lab.errors import ConsoleFailed, exit_status
from lab.judge.judge import judge
from lab.judge.report import Report, combine
from lab.observe.runs import run_name
from lab.realise import control
from lab.realise.folders import LabFolder

BEGIN, END = 30.0, 120.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded and judged console command. `unjudged` is why there is no report."""

    run: str
    folder: Path
    code: int
    document: dict[str, Any]
    report: Report | None
    unjudged: VadplabError | None = None

    @property
    def exit_code(self) -> int:
        """Of the command and of its evidence together."""
        judged = self.report.exit_code if self.report else exit_status(self.unjudged) if self.unjudged else 3
        return combine(self.code, judged)

    def evidence(self) -> dict[str, Any]:
        """What the JSON documents of recorded commands add: evidence result, invariants, problems, folder."""
        report = self.report
        return {
            "run": self.run,
            "evidence": report.result if report else "not judged",
            "invariants": {i.id: i.state for i in report.invariants} if report else {},
            "problems": report.problems() if report else [self.unjudged.to_dict()] if self.unjudged else [],
            "folder": str(self.folder),
            "exit_code": self.exit_code,
        }

    def say(self, out: Out) -> None:
        """Tells people what the evidence says."""
        report = self.report
        if report is None:
            out.text(f"[yellow]evidence: not judged[/]: {self.unjudged}")
            return
        held = sum(i.state == "held" for i in report.invariants)
        colour = "green" if report.exit_code == 0 else "red"
        out.text(
            f"[{colour}]evidence: {report.result}[/]: {_counted(report.checked, 'connection')} judged, "
            f"{_counted(held, 'invariant')} held; see `vadplab flows {self.run}`"
        )
        for problem in report.problems()[:12]:
            out.text(f"  [red]{problem['code']}[/] {problem['message']}")


def run(lab: LabFolder, kind: str, argv: list[str], on_line: console.Line | None = None) -> Recorded:
    """Records, runs `argv` on the console with a session of its own, and judges.

    When the recording can not be ended or judged, the engine's result stays and `unjudged` says why.

    Raises:
        LabNotRunning, RunBusy and the like: nothing was started.
    """
    session = new_id()
    name = run_name(kind, session)
    begun = control.call(lab.control_socket, "run.begin", timeout=BEGIN, run=name, kind=kind, session=session)
    folder = Path(begun["folder"])
    try:
        code, document = console.run(lab, [*argv, "--session", session], on_line)
    except BaseException:
        # The recording must end in any case; the command's own failure is the one that counts.
        with contextlib.suppress(VadplabError):
            _end(lab, name, session)
        raise
    if code and not document:
        silent = ConsoleFailed(f"the console ended with {code} and said nothing; its log says why (`vadplab logs`)")
        document = {"result": "failed", "error": silent.to_dict()}
    try:
        # What could not be recorded (`problems` of run.end) is in the run folder: the judge says it.
        _end(lab, name, session)
        return Recorded(name, folder, code, document, judge(folder))
    except VadplabError as exc:
        return Recorded(name, folder, code, document, None, exc)


def _end(lab: LabFolder, run: str, session: str) -> None:
    control.call(lab.control_socket, "run.end", timeout=END, run=run, session=session)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
