# SPDX-License-Identifier: MIT
"""Brings the configuration database to a revision: `head` at each start of the service, others by `python -m engine.model`.

A database from before there were migrations is taken over as revision 0001. Every revision is one transaction, on
SQLite too; two services that start at once wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, event, inspect, text

from engine.dialer import Dialer
from engine.errors import InputError
from engine.model.connect import Place, engine_for, guarded

FIRST = "0001"
HEAD = "head"
_LOCK = 0x7661_6470  # "vadp": the advisory lock of a migration on PostgreSQL


class RevisionUnknown(InputError):
    """There is no such revision of the configuration database."""

    code = "database.revision"
    advice = (
        "List them with `python -m engine.model --config FILE revisions`; a newer engine may have made this database."
    )


def upgrade(where: Place, dialer: Dialer | None = None, revision: str = HEAD) -> str:
    """Upgrades to `revision`; gives the revision that the database then has. Raises RevisionUnknown, ConnectError."""
    with _connection(where, dialer) as connection:
        _adopt(connection)
        _run(lambda config: command.upgrade(config, revision), connection)
        return _current(connection) or "base"


def downgrade(where: Place, revision: str, dialer: Dialer | None = None) -> str:
    """Downgrades to `revision` (`base`: no tables). What the older schema cannot hold is lost."""
    with _connection(where, dialer) as connection:
        _adopt(connection)
        _run(lambda config: command.downgrade(config, revision), connection)
        return _current(connection) or "base"


def current(where: Place, dialer: Dialer | None = None) -> str:
    """The revision that the database has; `base` when it has no tables of ours."""
    with _connection(where, dialer) as connection:
        found = _current(connection)
        return found or (FIRST if inspect(connection).has_table("vcenters") else "base")


def revisions() -> list[dict[str, str]]:
    """Every revision, oldest first: `{revision, text}`."""
    found = ScriptDirectory.from_config(_config()).walk_revisions()
    return [{"revision": s.revision, "text": s.doc} for s in reversed(list(found))]


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", "engine.model:migrations")
    config.attributes["connection"] = connection
    return config


def _run(work: Any, connection: Connection) -> None:
    try:
        work(_config(connection))
    except CommandError as exc:
        raise RevisionUnknown(f"configuration database: {exc}") from exc


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _adopt(connection: Connection) -> None:
    """Takes over a database whose tables were made before there were migrations."""
    if _current(connection) is None and inspect(connection).has_table("vcenters"):
        connection.rollback()
        command.stamp(_config(connection), FIRST)
    connection.rollback()


@contextmanager
def _connection(where: Place, dialer: Dialer | None) -> Iterator[Connection]:
    made: Engine = engine_for(where, dialer, single=True)
    if where.is_sqlite:
        event.listen(made, "connect", _leave_transactions_to_us)
        event.listen(made, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with guarded(where), made.connect() as connection:
            if not where.is_sqlite:
                connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
                connection.commit()
            yield connection
    finally:
        made.dispose()


def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
    """Python's sqlite3 would commit before each CREATE and ALTER by itself."""
    connection.isolation_level = None
