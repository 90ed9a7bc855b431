# SPDX-License-Identifier: MIT
"""What a run tells: step events, progress for consoles, and the result document (`vadplab.job-result/1`).

Used by every process that performs steps: the Backup Service, the Backup Manager, and the console.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from engine.errors import VadplabError
from engine.events import EventLog
from engine.rpc.server import Cancelled
from engine.steps import BY_ID

RESULT_SCHEMA = "vadplab.job-result/1"


class JobStopped(VadplabError):
    """The job was stopped before it was done."""

    code = "job.stopped"
    symptom = "stopped"
    advice = "Run the job again."


@dataclass(slots=True)
class Reporter:
    """Writes each step to the machine's events and tells consoles."""

    events: EventLog
    tell: Callable[[dict[str, Any]], None]
    started: int = field(default_factory=time.time_ns)

    @contextmanager
    def step(self, step: str, *, task: str | None = None, text: str = "", **data: Any) -> Iterator[dict[str, Any]]:
        """A step: begin, then end or failed. What is put into the yielded dict goes into the end's data.

        An error without a step of its own gets this one.
        """
        result: dict[str, Any] = {}
        self._write(step, "begin", task, text, data)
        try:
            yield result
        except VadplabError as exc:
            exc.step = exc.step or step
            self._write(step, "failed", task, exc.message, {"code": exc.to_dict()["code"]})
            raise
        except asyncio.CancelledError:
            self._write(step, "failed", task, "stopped", {"code": Cancelled.code})
            raise
        except Exception as exc:
            self._write(step, "failed", task, type(exc).__name__, {"code": VadplabError.code})
            raise
        self._write(step, "end", task, text, {**data, **result})

    def relay(self, step: str, phase: str, *, task: str, text: str = "") -> None:
        """A step that another process performs and writes: for consoles only."""
        if step in BY_ID:
            self._tell(step, phase, task, text)

    def failed(self, step: str, *, task: str, error: VadplabError) -> None:
        """The end of a step whose process is gone and can no longer write it."""
        self._write(step, "failed", task, error.message, {"code": error.to_dict()["code"]})

    def skipped(self, step: str, why: str, *, task: str | None = None) -> None:
        """A step that does not apply."""
        self._write(step, "skipped", task, why, {})

    def warning(self, error: VadplabError, *, vm: str) -> None:
        """Something that does not fail the run but must be seen."""
        fields = error.to_dict()
        self.events.note(f"{vm}: {error.message}", step=error.step, code=fields["code"], vm=vm)
        self.tell({"kind": "warning", "vm": vm, "error": fields})

    def note(self, text: str, *, step: str, **data: Any) -> None:
        """Something that a reader should know."""
        self.events.note(text, step=step, **data)
        self.tell({"kind": "note", "step": step, "text": text})

    def moved(self, task: str, read: int, total: int) -> None:
        """Progress of a task, in bytes."""
        self.tell({"kind": "task", "task": task, "read": read, "total": total})

    def _write(self, step: str, phase: str, task: str | None, text: str, data: dict[str, Any]) -> None:
        self.events.emit("step", step=step, task=task, phase=phase, text=text, data=data)
        self._tell(step, phase, task, text)

    def _tell(self, step: str, phase: str, task: str | None, text: str) -> None:
        self.tell({
            "kind": "step", "step": step, "phase": phase, "task": task, "text": text, "title": BY_ID[step].title,
            "utc": time.time_ns(),
        })  # fmt: skip


def document(
    session: str,
    job: str,
    started: int,
    error: VadplabError | None,
    *,
    vms: Sequence[Mapping[str, Any]] = (),
    points: Sequence[Mapping[str, Any]] = (),
    warnings: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The result of a run: success, warning or failed, its error, points, and each VM.

    Args:
        started: ns since the epoch. error: of the job, or of its first VM that failed. vms: entries with their `result`.
    """
    warned = bool(warnings) or any(vm["result"] == "warning" for vm in vms)
    return {
        "schema": RESULT_SCHEMA,
        "run": session,
        "kind": "job",
        "job": job,
        "result": "failed" if error is not None else "warning" if warned else "success",
        "error": error.to_dict() if error is not None else None,
        "warnings": list(warnings),
        "restore_points": list(points),
        "vms": list(vms),
        "started": _time(started),
        "ended": _time(time.time_ns()),
    }


def what_is_left(pending: Mapping[str, Mapping[str, Any]]) -> str:
    """A sentence about what a run that ended early left behind, from what is still pending (`{vm: {guest, snapshot, attached}}`)."""
    words = {
        "snapshot": "its snapshot may stay",
        "guest": "its guest may be frozen until it thaws itself",
        "attached": "a disk of it may be attached to a proxy",
    }
    left = [
        f"{vm}: {', '.join(text for key, text in words.items() if entry.get(key))}"
        for vm, entry in pending.items()
        if entry
    ]
    if not left:
        return "Nothing of this run is left behind."
    return f"Left behind: {'; '.join(left)}. The Backup Service puts it right when it starts again."


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat()
