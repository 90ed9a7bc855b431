# SPDX-License-Identifier: MIT
"""Methods that change the configuration: jobs, schedules, servers, limits, tokens. Consoles call them.

job.create {settings}   job.edit {name, changes}   job.delete {name}   job.enable {name, on}   job.schedule {name, schedule}
infra.servers {role?}   infra.add {role, fields}   infra.edit {role, name, changes}   infra.remove {role, name}
infra.limit {name, tasks}   token.issue {name, hours}   token.list {}   token.revoke {name}

Each gives the changed entry. `schedule`: `engine.model.schedule.Schedule`, null takes it away; `tasks` null: as configured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.errors import InputError
from engine.model.database import Database
from engine.model.servers import ROLES
from engine.rpc.server import Call
from engine.service.jobs import Jobs

DEFAULT_HOURS = 24.0


class Administration:
    """Answers those methods; `changed` is called after each change of a schedule or a job."""

    def __init__(self, jobs: Jobs, changed: Callable[[], None]) -> None:
        self._jobs = jobs
        self._changed = changed
        self._methods: dict[str, Callable[[Call], Callable[[Database], Any]]] = {
            "job.create": _create_job,
            "job.edit": _edit_job,
            "job.delete": _delete_job,
            "job.enable": _enable_job,
            "job.schedule": _schedule_job,
            "infra.servers": _servers,
            "infra.add": _add_server,
            "infra.edit": _edit_server,
            "infra.remove": _remove_server,
            "infra.limit": _limit,
            "token.issue": _issue_token,
            "token.list": _tokens,
            "token.revoke": _revoke_token,
        }

    def knows(self, method: str) -> bool:
        """Whether it answers this method."""
        return method in self._methods

    async def handle(self, call: Call) -> Any:
        """Answers a call. Raises InputError and its kin; nothing was changed then."""
        if call.method == "job.delete":
            self._jobs.refuse_while_running(call.param("name"))
        result = await self._jobs.database(self._methods[call.method](call))
        if call.method.startswith("job."):
            self._changed()
        return result


def _create_job(call: Call) -> Callable[[Database], Any]:
    settings = call.param("settings", dict)
    return lambda db: {"job": db.job_book.create(settings)}


def _edit_job(call: Call) -> Callable[[Database], Any]:
    name, changes = call.param("name"), call.param("changes", dict)
    return lambda db: {"job": db.job_book.edit(name, changes)}


def _delete_job(call: Call) -> Callable[[Database], Any]:
    name = call.param("name")

    def delete(db: Database) -> dict[str, Any]:
        db.job_book.delete(name)
        return {"name": name, "deleted": True}

    return delete


def _enable_job(call: Call) -> Callable[[Database], Any]:
    name, on = call.param("name"), call.param("on", bool)
    return lambda db: {"job": db.job_book.enable(name, on)}


def _schedule_job(call: Call) -> Callable[[Database], Any]:
    name, schedule = call.param("name"), call.param("schedule", dict, default=None)
    return lambda db: {"job": db.job_book.schedule(name, schedule)}


def _servers(call: Call) -> Callable[[Database], Any]:
    role = _role(call.param("role", default=None))
    return lambda db: {"servers": db.server_book.entries(role)}


def _add_server(call: Call) -> Callable[[Database], Any]:
    role, fields = str(_role(call.param("role"))), call.param("fields", dict)
    return lambda db: {"server": db.server_book.add(role, fields)}


def _edit_server(call: Call) -> Callable[[Database], Any]:
    role, name, changes = str(_role(call.param("role"))), call.param("name"), call.param("changes", dict)
    return lambda db: {"server": db.server_book.edit(role, name, changes)}


def _remove_server(call: Call) -> Callable[[Database], Any]:
    role, name = str(_role(call.param("role"))), call.param("name")

    def remove(db: Database) -> dict[str, Any]:
        db.server_book.remove(role, name)
        return {"name": name, "role": role, "removed": True}

    return remove


def _limit(call: Call) -> Callable[[Database], Any]:
    name, tasks = call.param("name"), call.param("tasks", int, default=None)
    return lambda db: {"server": db.server_book.limit(name, tasks)}


def _issue_token(call: Call) -> Callable[[Database], Any]:
    name, hours = call.param("name"), call.param("hours", (int, float), default=DEFAULT_HOURS)
    return lambda db: db.tokens.issue(name, float(hours))


def _tokens(call: Call) -> Callable[[Database], Any]:
    return lambda db: {"tokens": db.tokens.entries()}


def _revoke_token(call: Call) -> Callable[[Database], Any]:
    name = call.param("name")

    def revoke(db: Database) -> dict[str, Any]:
        db.tokens.revoke(name)
        return {"name": name, "revoked": True}

    return revoke


def _role(value: str | None) -> str | None:
    if value is not None and value not in ROLES:
        raise InputError(f"unknown role {value}; one of {', '.join(ROLES)}")
    return value
