# SPDX-License-Identifier: MIT
"""What a run leaves in writing: the manifest of each restore point, and the run's result document."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from engine import report
from engine.errors import VadplabError
from engine.manager.tasks import DiskTask, VmRun
from engine.store.manifest import SCHEMA

_STORED = ("file", "stored", "digests", "root")


def manifest(session: str, job: str, run: VmRun) -> dict[str, Any]:
    """The manifest of a VM's restore point (`engine.store.manifest`); the repository adds what only it knows."""
    assert run.info is not None and run.snapshot is not None and run.base is not None
    return {
        "schema": SCHEMA,
        "job": job,
        "vm": {"name": run.name, "uuid": run.info.uuid},
        "point": run.point,
        "created": datetime.now(UTC).isoformat(),
        "kind": run.base.kind,
        "parent": run.base.point,
        "consistency": run.consistency,
        "session": session,
        "snapshot": {"moref": run.snapshot.moref, "name": run.snapshot.name, "id": run.snapshot.number},
        "vmx": run.tasks[0].vmx,
        "disks": [
            {
                "key": t.disk.key, "label": t.disk.label, "path": t.disk.path, "capacity": t.disk.capacity,
                "change_id": t.change_id, **{k: t.stored[k] for k in _STORED},
            }
            for t in run.tasks
        ],
    }  # fmt: skip


def document(session: str, job: str, runs: list[VmRun], started: int, error: VadplabError | None) -> dict[str, Any]:
    """The result of a run; without an error of the job's own, the first failed VM's is the job's."""
    first = error or next((r.error for r in runs if r.error is not None), None)
    return report.document(
        session,
        job,
        started,
        first,
        vms=[_vm(r, r.error or (None if r.point_visible else error)) for r in runs],
        points=[_point(job, r) for r in runs if r.point_visible],
        warnings=[{"vm": r.name, **w.to_dict()} for r in runs for w in r.warnings],
    )


def _vm(run: VmRun, error: VadplabError | None) -> dict[str, Any]:
    """One VM of the result; `error` is its own, or the job's when the job ended before the VM had a restore point."""
    return {
        "vm": run.name,
        "result": "failed" if error else "warning" if run.warnings or run.orphan else "success",
        "error": error.to_dict() if error else None,
        "consistency": run.consistency if run.point_visible else None,
        "scripts": run.scripts,
        "kind": run.base.kind if run.base else None,
        "parent": run.base.point if run.base else None,
        "reason": run.base.reason or None if run.base else None,
        "orphaned_snapshot": run.snapshot.moref if run.orphan and run.snapshot else None,
        "orphan": run.orphan,
        "tasks": [_task(t) for t in run.tasks],
    }


def _task(task: DiskTask) -> dict[str, Any]:
    reading = task.reading
    return {
        "task": task.id,
        "disk": task.disk.label,
        "proxy": task.proxy,
        "repository": task.repository,
        "mode": task.mode or None,
        "failed_over": task.failed_over,
        "read": reading.how if reading else None,
        "reason": reading.reason if reading else None,
        "lost": task.lost,
        "moved": task.moved,
        "error": task.error.to_dict() if task.error else None,
    }


def _point(job: str, run: VmRun) -> dict[str, Any]:
    return {
        "point": run.point,
        "job": job,
        "vm": run.name,
        "repository": run.tasks[0].repository,
        "consistency": run.consistency,
        "kind": run.base.kind if run.base else "full",
        "parent": run.base.point if run.base else None,
        "disks": [
            {"key": t.disk.key, "label": t.disk.label, "capacity": t.disk.capacity, "stored": t.stored.get("stored")}
            for t in run.tasks
        ],
    }
