# SPDX-License-Identifier: MIT
"""Proxies and repositories in the configuration database, and their limits.

Precedence as for jobs: a server of origin `console` wins over the file's entry of the same name and survives rescans;
editing a server of the file makes it the console's; removing the console's gives the name back to the file. A *limit* is the
database's own: it replaces `max_tasks` of either kind until it is cleared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.config import problems
from engine.errors import InputError
from engine.model.connect import Sessions
from engine.model.infrastructure import ManagedServer
from engine.model.jobs import CONSOLE, FILE
from engine.model.tables import JobRow, PlacementRow, ServerRow

MAX_TASKS = 512
ROLES = ("proxy", "repository")


class ServerUnknown(InputError):
    """There is no server of that name and role."""

    code = "server.unknown"
    advice = "List them with `infra proxies list` or `infra repositories list`."


class ServerExists(InputError):
    """A server of that name has that role already."""

    code = "server.exists"
    advice = "Change it with `edit`, or take another name."


class ServerOfTheFile(InputError):
    """The server stands in the infrastructure file."""

    code = "server.of-the-file"
    advice = "Remove it from the infrastructure file and run `infra rescan`."


class ServerNeeded(InputError):
    """The server cannot be removed: something needs it."""

    code = "server.needed"
    advice = "Add another server of that role first; a repository that keeps restore points has to stay."


class ServerBook:
    """The servers of the configuration database."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def entries(self, role: str | None = None) -> list[dict[str, Any]]:
        """Every server (of a role): name, address, port, roles, max_tasks (in force), modes, facts, problem, origin, limit."""
        with self._sessions.read() as session:
            rows = session.scalars(select(ServerRow).order_by(ServerRow.name))
            return [_shown(row) for row in rows if role is None or role in row.roles]

    def add(self, role: str, fields: dict[str, Any]) -> dict[str, Any]:
        """A new server, or a further role of one that is known. Raises ServerExists, InputError that names the field."""
        with self._sessions.begin() as session:
            row = session.get(ServerRow, str(fields.get("name")))
            if row is not None and role in row.roles:
                raise ServerExists(f"{row.name} is a {role} already")
            if row is not None:
                given = {k: v for k, v in fields.items() if k != "name"}
                return _shown(self._put(row, {**_settings(row), **given, "roles": [*row.roles, role]}))
            server = _validated({**fields, "roles": [role]})
            row = ServerRow(**server.model_dump(mode="json"), facts={}, problem=None, origin=CONSOLE)
            session.add(row)
            return _shown(row)

    def edit(self, role: str, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Changes address, port, max_tasks or modes of a server; it is the console's then."""
        with self._sessions.begin() as session:
            row = _row(session, role, name)
            if not changes:
                raise InputError("nothing to change was given")
            return _shown(self._put(row, {**_settings(row), **changes, "name": name, "roles": row.roles}))

    def remove(self, role: str, name: str) -> None:
        """Takes a role from a server, and the server away when it was the last one.

        Raises:
            ServerUnknown, ServerOfTheFile. ServerNeeded: it is the last of its role, or keeps restore points.
        """
        with self._sessions.begin() as session:
            row = _row(session, role, name)
            if row.origin == FILE:
                raise ServerOfTheFile(f"{name} stands in the infrastructure file")
            others = [r for r in session.scalars(select(ServerRow)) if role in r.roles and r.name != name]
            if not others:
                raise ServerNeeded(f"{name} is the only {role}")
            if role == "repository" and (kept := self._kept(session, name)):
                raise ServerNeeded(f"{name} keeps restore points of {', '.join(kept)}")
            left = [r for r in row.roles if r != role]
            if left:
                row.roles = left
            else:
                session.delete(row)

    def limit(self, name: str, tasks: int | None) -> dict[str, Any]:
        """How many tasks a server runs at a time; None: as configured. Runs that go on keep their slots."""
        if tasks is not None and not 1 <= tasks <= MAX_TASKS:
            raise InputError(f"limit: from 1 to {MAX_TASKS} tasks")
        with self._sessions.begin() as session:
            row = session.get(ServerRow, name)
            if row is None:
                raise ServerUnknown(f"no server with the name {name}")
            row.limit = tasks
            return _shown(row)

    @staticmethod
    def _put(row: ServerRow, fields: dict[str, Any]) -> ServerRow:
        server = _validated(fields)
        if (server.address, server.port) != (row.address, row.port):
            row.facts, row.problem = {}, None
        for key, value in server.model_dump(mode="json").items():
            setattr(row, key, value)
        row.origin = CONSOLE
        return row

    @staticmethod
    def _kept(session: Session, repository: str) -> Iterable[str]:
        placed = select(PlacementRow).where(PlacementRow.repository == repository)
        known = {row.name for row in session.scalars(select(JobRow))}
        return sorted({row.job for row in session.scalars(placed) if row.job in known})


def replace_file_servers(session: Session, servers: Iterable[ManagedServer]) -> None:
    """A rescan: the file's servers are replaced, those of the console stay; facts and limits stay."""
    kept = {row.name: row for row in session.scalars(select(ServerRow))}
    wanted = set()
    for server in servers:
        wanted.add(server.name)
        row = kept.get(server.name)
        if row is None:
            session.add(ServerRow(**server.model_dump(mode="json"), facts={}, problem=None, origin=FILE))
        elif row.origin == FILE:
            for key, value in server.model_dump(mode="json").items():
                setattr(row, key, value)
    for name, row in kept.items():
        if row.origin == FILE and name not in wanted:
            session.delete(row)


def _validated(fields: dict[str, Any]) -> ManagedServer:
    try:
        return ManagedServer.model_validate(fields)
    except ValidationError as exc:
        raise InputError(f"server: {problems(exc)}") from exc


def _row(session: Session, role: str, name: str) -> ServerRow:
    row = session.get(ServerRow, name)
    if row is None or role not in row.roles:
        raise ServerUnknown(f"no {role} with the name {name}")
    return row


def _settings(row: ServerRow) -> dict[str, Any]:
    return {k: getattr(row, k) for k in ("name", "address", "port", "roles", "max_tasks", "modes")}


def _shown(row: ServerRow) -> dict[str, Any]:
    return {
        **_settings(row),
        "max_tasks": row.limit or row.max_tasks,
        "facts": row.facts,
        "problem": row.problem,
        "origin": row.origin,
        "limit": row.limit,
    }
