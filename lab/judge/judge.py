# SPDX-License-Identifier: MIT
"""Judges a run folder: reads the evidence, writes `report.json` and `flows.json`, puts comments into the capture."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from engine.errors import VadplabError
from lab.judge import folder as run_folder
from lab.judge.report import Report, build
from lab.judge.verdict import Flow
from lab.observe.annotate import NotPcapng, annotate
from lab.observe.errors import EvidenceMissing
from lab.observe.runs import write_json


def judge(folder: Path, *, comments: bool = True) -> Report:
    """The report of a run folder; also written there.

    Args:
        comments: whether first SYNs, resets and ICMP errors of the capture get a packet comment.

    Raises:
        EvidenceMissing: a needed file is not there or can not be read.
    """
    report = build(run_folder.read(folder))
    write_json(folder / "report.json", report.to_report())
    write_json(folder / "flows.json", report.to_flows())
    if comments:
        _annotate(folder, report)
    return report


def packet_comments(report: Report) -> dict[int, str]:
    """Frame number → comment, for first SYNs, resets and ICMP errors of every flow."""
    found: dict[int, str] = {}
    for flow in [*report.flows, *report.foreign]:
        packets = flow.joined.packets if flow.joined else None
        if packets is None:
            continue
        frames = packets["frames"]
        text = _comment(flow)
        for number in [*frames["syn"][:2], *frames["rst"], *frames["icmp"]]:
            found[number] = text
    return found


def _comment(flow: Flow) -> str:
    step = flow.step or "foreign"
    event = flow.joined.attempt.id if flow.joined and flow.joined.attempt else "none"
    return (
        f"rule={flow.rule} row={flow.row or 'none'} step={step} verdict={flow.verdict.value} "
        f"flow={flow.number} {flow.initiator} > {flow.responder}:{flow.port} event={event}"
    )


def _annotate(folder: Path, report: Report) -> None:
    """Comments change no packet, so what was read from the capture stays valid: its file is marked as newer."""
    capture = folder / "capture.pcapng"
    done = folder / "capture.annotated"
    if done.exists():
        return
    try:
        annotate(capture, packet_comments(report))
    except NotPcapng as exc:
        raise EvidenceMissing(f"{folder.name}: capture.pcapng: {exc}") from exc
    done.touch()
    os.utime(folder / "packets.jsonl")


def main(argv: list[str]) -> int:
    """`python -m lab.judge RUN_FOLDER`: prints the report; exit code as `Report.exit_code`."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m lab.judge RUN_FOLDER\n")
        return 2
    try:
        report = judge(Path(argv[0]))
    except VadplabError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    sys.stdout.write(json.dumps(report.to_report(), indent=1) + "\n")
    return report.exit_code
