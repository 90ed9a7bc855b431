# SPDX-License-Identifier: MIT
"""Jobs in the configuration database: those of the infrastructure file, and those made or changed in a console.

Precedence: a job of origin `console` wins over the file's entry of the same name and survives every rescan. Editing a
job of the file makes it the console's. Deleting a job of the console gives the name back to the file: its entry, if it
has one, returns with the next rescan. A job of the file cannot be deleted here. The switch and the schedule are the
database's own for both kinds and survive rescans.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.config import problems
from engine.errors import InputError
from engine.model.connect import Sessions
from engine.model.infrastructure import Job
from engine.model.schedule import Schedule, due, from_ns, to_ns
from engine.model.tables import JobRow, VCenterRow, VmRow

FILE, CONSOLE = "file", "console"
NEXT_RUNS = 3


class JobUnknown(InputError):
    """There is no job of that name."""

    code = "job.unknown"
    advice = "List the jobs with `job list`; a job that was just added needs `infra rescan`."


class JobExists(InputError):
    """A job of that name exists."""

    code = "job.exists"
    advice = "Change it with `job edit`, or take another name."


class JobOfTheFile(InputError):
    """The job stands in the infrastructure file."""

    code = "job.of-the-file"
    advice = "Remove it from the infrastructure file and run `infra rescan`, or switch it off with `job disable`."


class VmUnknown(InputError):
    """A job names a VM that the last rescan did not see."""

    code = "job.vm-unknown"
    advice = "`infra show` lists the VMs; run `infra rescan` when it is new. Nothing was changed."


class JobDisabled(InputError):
    """The job is switched off."""

    code = "job.disabled"
    advice = "Switch it on with `job enable`."


class JobBook:
    """The jobs of the configuration database."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def get(self, name: str) -> Job:
        """A job's settings. Raises JobUnknown."""
        with self._sessions.read() as session:
            return Job.model_validate(_row(session, name).settings)

    def entries(self) -> list[dict[str, Any]]:
        """Settings of every job, with origin, enabled, schedule and next_runs."""
        with self._sessions.read() as session:
            return [_shown(row) for row in session.scalars(select(JobRow).order_by(JobRow.name))]

    def show(self, name: str) -> dict[str, Any]:
        """One of those. Raises JobUnknown."""
        with self._sessions.read() as session:
            return _shown(_row(session, name))

    def create(self, settings: dict[str, Any]) -> dict[str, Any]:
        """A new job of the console. Raises JobExists, InputError that names the field."""
        with self._sessions.begin() as session:
            job = self._validated(session, settings)
            if session.get(JobRow, job.name) is not None:
                raise JobExists(f"a job with the name {job.name} exists")
            self._check_vms(session, job, job.vms)
            row = JobRow(name=job.name, settings=job.model_dump(mode="json"), origin=CONSOLE, enabled=True)
            session.add(row)
            return _shown(row)

    def edit(self, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Changes fields of a job (`guest` and `rules` field by field); it is the console's then."""
        with self._sessions.begin() as session:
            row = _row(session, name)
            if not changes:
                raise InputError("nothing to change was given")
            if changes.get("name", name) != name:
                raise InputError("a job's name cannot be changed")
            merged = dict(row.settings)
            for key, value in changes.items():
                inner = merged.get(key)
                merged[key] = inner | value if isinstance(inner, dict) and isinstance(value, dict) else value
            job = self._validated(session, merged)
            self._check_vms(session, job, [vm for vm in job.vms if vm not in row.settings["vms"]])
            row.settings = job.model_dump(mode="json")
            row.origin = CONSOLE
            return _shown(row)

    def delete(self, name: str) -> None:
        """Raises JobUnknown, JobOfTheFile."""
        with self._sessions.begin() as session:
            row = _row(session, name)
            if row.origin == FILE:
                raise JobOfTheFile(f"job {name} stands in the infrastructure file")
            session.delete(row)

    def enable(self, name: str, on: bool) -> dict[str, Any]:
        """Switches a job on or off; a job that is off starts neither by hand nor by its schedule."""
        with self._sessions.begin() as session:
            row = _row(session, name)
            if on and not row.enabled:
                row.considered = time.time_ns()  # what came while it was off is not missed
            row.enabled = on
            return _shown(row)

    def schedule(self, name: str, schedule: dict[str, Any] | None, *, now: int | None = None) -> dict[str, Any]:
        """Gives a job a schedule, or takes it away (None). Raises JobUnknown, InputError that names the field."""
        checked = None if schedule is None else validated_schedule(schedule)
        with self._sessions.begin() as session:
            row = _row(session, name)
            row.schedule = checked.model_dump() if checked else None
            row.considered = now if now is not None else time.time_ns()
            return _shown(row)

    def take_due(self, now: datetime) -> list[dict[str, Any]]:
        """The jobs that start now: `{job, at, missed, start}`. They are marked in the same transaction: none starts twice.

        An entry with `start` false tells of missed runs that the job's schedule skips.
        """
        found = []
        with self._sessions.begin() as session:
            query = select(JobRow).where(JobRow.schedule.is_not(None)).order_by(JobRow.name).with_for_update()
            for row in session.scalars(query):
                if not row.enabled or row.schedule is None:
                    continue
                considered = from_ns(row.considered) if row.considered is not None else now
                result = due(Schedule.model_validate(row.schedule), considered, now)
                if result.at is not None or row.considered is None:
                    row.considered = to_ns(now)
                if result.at is not None:
                    at = result.at.isoformat()
                    found.append({"job": row.name, "at": at, "missed": result.missed, "start": result.start})
        return found

    def next_start(self, now: datetime) -> datetime | None:
        """When the next scheduled start of any job is."""
        with self._sessions.read() as session:
            rows = session.scalars(select(JobRow).where(JobRow.schedule.is_not(None))).all()
            coming = [Schedule.model_validate(r.schedule).next(now) for r in rows if r.enabled and r.schedule]
        return min((c for c in coming if c is not None), default=None)

    @staticmethod
    def _check_vms(session: Session, job: Job, vms: list[str]) -> None:
        """New VMs of a job are in the inventory, as far as one has been read. Raises VmUnknown."""
        vcenter = job.vcenter or session.scalar(select(VCenterRow.name).order_by(VCenterRow.name))
        known = set(session.scalars(select(VmRow.name).where(VmRow.vcenter == vcenter)))
        if known and (unknown := [vm for vm in vms if vm not in known]):
            raise VmUnknown(f"job {job.name}: {vcenter} has no VM {', '.join(unknown)}")

    @staticmethod
    def _validated(session: Session, settings: dict[str, Any]) -> Job:
        try:
            job = Job.model_validate(settings)
        except ValidationError as exc:
            raise InputError(f"job: {problems(exc)}") from exc
        if len(set(job.vms)) != len(job.vms):
            raise InputError(f"job {job.name}: a VM stands twice in it")
        if job.vcenter is not None and session.get(VCenterRow, job.vcenter) is None:
            raise InputError(f"job {job.name}: unknown vCenter {job.vcenter}")
        for script in (job.guest.pre_freeze, job.guest.post_thaw):
            if job.guest.enabled and not script.is_file():
                raise InputError(f"job {job.name}: no script {script} on the backup server")
        return job


def replace_file_jobs(session: Session, jobs: list[Job]) -> None:
    """A rescan: the file's jobs are replaced, those of the console stay, switches and schedules stay."""
    kept = {row.name: row for row in session.scalars(select(JobRow))}
    wanted = {job.name for job in jobs}
    for job in jobs:
        row = kept.get(job.name)
        if row is None:
            session.add(JobRow(name=job.name, settings=job.model_dump(mode="json"), origin=FILE, enabled=True))
        elif row.origin == FILE:
            row.settings = job.model_dump(mode="json")
    for name, row in kept.items():
        if row.origin == FILE and name not in wanted:
            session.delete(row)


def validated_schedule(fields: dict[str, Any]) -> Schedule:
    """Raises InputError that names the field."""
    try:
        return Schedule.model_validate(fields)
    except ValidationError as exc:
        raise InputError(f"schedule: {problems(exc)}") from exc


def _row(session: Session, name: str) -> JobRow:
    row = session.get(JobRow, name)
    if row is None:
        raise JobUnknown(f"no job with the name {name}")
    return row


def _shown(row: JobRow) -> dict[str, Any]:
    coming: list[str] = []
    if row.schedule and row.enabled:
        found = Schedule.model_validate(row.schedule).coming(datetime.now(UTC), NEXT_RUNS)
        coming = [at.isoformat() for at in found]
    return {
        **row.settings,
        "origin": row.origin,
        "enabled": row.enabled,
        "schedule": row.schedule,
        "next_runs": coming,
    }
