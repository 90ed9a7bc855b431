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


def manifest(session: str, job: str, vm: VmRun) -> dict[str, Any]:
    """The manifest of a VM's restore point (`engine.store.manifest`); the repository adds what only it knows."""
    assert vm.info is not None and vm.snapshot is not None and vm.base is not None
    return {
        "schema": SCHEMA,
        "job": job,
        "vm": {"name": vm.name, "uuid": vm.info.uuid},
        "point": vm.point,
        "created": datetime.now(UTC).isoformat(),
        "kind": vm.base.kind,
        "parent": vm.base.point,
        "consistency": vm.consistency,
        "session": session,
        "snapshot": {"moref": vm.snapshot.moref, "name": vm.snapshot.name, "id": vm.snapshot.number},
        "vmx": vm.tasks[0].vmx,
        "disks": [
            {
                "key": t.disk.key, "label": t.disk.label, "path": t.disk.path, "capacity": t.disk.capacity,
                "change_id": t.change_id, **{k: t.stored[k] for k in _STORED},
            }
            for t in vm.tasks
        ],
    }  # fmt: skip


def document(session: str, job: str, vms: list[VmRun], started: int, error: VadplabError | None) -> dict[str, Any]:
    """The result of a run; without an error of the job's own, the first failed VM's is the job's."""
    first = error or next((r.error for r in vms if r.error is not None), None)
    return report.document(
        session,
        job,
        started,
        first,
        vms=[_vm(r, r.error or (None if r.point_visible else error)) for r in vms],
        points=[_point(job, r) for r in vms if r.point_visible],
        warnings=[{"vm": r.name, **w.to_dict()} for r in vms for w in r.warnings],
    )


def _vm(vm: VmRun, error: VadplabError | None) -> dict[str, Any]:
    """One VM of the result; `error` is its own, or the job's when the job ended before the VM had a restore point."""
    return {
        "vm": vm.name,
        "result": "failed" if error else "warning" if vm.warnings or vm.orphan else "success",
        "error": error.to_dict() if error else None,
        "consistency": vm.consistency if vm.point_visible else None,
        "scripts": vm.scripts,
        "kind": vm.base.kind if vm.base else None,
        "parent": vm.base.point if vm.base else None,
        "reason": vm.base.reason or None if vm.base else None,
        "orphaned_snapshot": vm.snapshot.moref if vm.orphan and vm.snapshot else None,
        "orphan": vm.orphan,
        "tasks": [_task(t) for t in vm.tasks],
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


def _point(job: str, vm: VmRun) -> dict[str, Any]:
    return {
        "point": vm.point,
        "job": job,
        "vm": vm.name,
        "repository": vm.tasks[0].repository,
        "consistency": vm.consistency,
        "kind": vm.base.kind if vm.base else "full",
        "parent": vm.base.point if vm.base else None,
        "disks": [
            {"key": t.disk.key, "label": t.disk.label, "capacity": t.disk.capacity, "stored": t.stored.get("stored")}
            for t in vm.tasks
        ],
    }
