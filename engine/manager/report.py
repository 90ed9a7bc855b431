# SPDX-License-Identifier: MIT
"""What a run tells: step events, progress for consoles, and the result document (`vadplab.job-result/1`)."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from engine.errors import VadplabError
from engine.events import EventLog
from engine.manager.tasks import VmRun
from engine.rpc.server import Cancelled
from engine.steps import BY_ID

RESULT_SCHEMA = "vadplab.job-result/1"


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

    def performed(self, *steps: str, task: str, error: VadplabError | None = None) -> None:
        """Steps that a Data Mover performed, for consoles only: the mover has written their events. `error` ends the last one."""
        for step in steps:
            if error is not None and step == error.step:
                self._tell(step, "failed", task, error.message)
                return
            self._tell(step, "end", task, "")

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


def document(session: str, job: str, runs: list[VmRun], started: int, error: VadplabError | None) -> dict[str, Any]:
    """The result of a run: success, warning or failed, its first error, points, and each VM."""
    first = error or next((r.error for r in runs if r.error is not None), None)
    warned = any(r.warnings or r.orphan for r in runs)
    return {
        "schema": RESULT_SCHEMA,
        "run": session,
        "kind": "job",
        "job": job,
        "result": "failed" if first is not None else "warning" if warned else "success",
        "error": first.to_dict() if first is not None else None,
        "warnings": [{"vm": r.name, **w.to_dict()} for r in runs for w in r.warnings],
        "restore_points": [_point(job, r) for r in runs if r.point_visible],
        "vms": [_vm(r, r.error or (None if r.point_visible else error)) for r in runs],
        "started": _time(started),
        "ended": _time(time.time_ns()),
    }


def new_point_id() -> str:
    """A restore point's id: the time in UTC and four random digits."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:4]}"


def manifest(session: str, job: str, run: VmRun) -> dict[str, Any]:
    """The manifest of a VM's restore point (`vadplab.point/1`, `engine.store.manifest`)."""
    assert run.info is not None and run.snapshot is not None
    return {
        "schema": "vadplab.point/1",
        "job": job,
        "vm": {"name": run.name, "uuid": run.info.uuid},
        "point": run.point,
        "created": datetime.now(UTC).isoformat(),
        "kind": "full",
        "consistency": run.consistency,
        "session": session,
        "snapshot": {"moref": run.snapshot.moref, "name": run.snapshot.name, "id": run.snapshot.number},
        "vmx": run.tasks[0].vmx,
        "disks": [
            {
                "key": t.disk.key, "label": t.disk.label, "path": t.disk.path, "capacity": t.disk.capacity,
                **{k: t.stored[k] for k in ("file", "stored", "digests", "root")},
            }
            for t in run.tasks
        ],
    }  # fmt: skip


def _vm(run: VmRun, error: VadplabError | None) -> dict[str, Any]:
    """One VM of the result; `error` is its own, or the job's when the job ended before the VM had a restore point."""
    return {
        "vm": run.name,
        "result": "failed" if error else "warning" if run.warnings or run.orphan else "success",
        "error": error.to_dict() if error else None,
        "consistency": run.consistency if run.point_visible else None,
        "scripts": run.scripts,
        "orphaned_snapshot": run.snapshot.moref if run.orphan and run.snapshot else None,
        "orphan": run.orphan,
        "tasks": [
            {
                "task": t.id, "disk": t.disk.label, "proxy": t.proxy, "repository": t.repository, "moved": t.moved,
                "error": t.error.to_dict() if t.error else None,
            }
            for t in run.tasks
        ],
    }  # fmt: skip


def _point(job: str, run: VmRun) -> dict[str, Any]:
    return {
        "point": run.point,
        "job": job,
        "vm": run.name,
        "repository": run.tasks[0].repository,
        "consistency": run.consistency,
        "disks": [
            {"key": t.disk.key, "label": t.disk.label, "capacity": t.disk.capacity, "stored": t.stored.get("stored")}
            for t in run.tasks
        ],
    }


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat()
