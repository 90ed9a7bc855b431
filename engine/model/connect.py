# SPDX-License-Identifier: MIT
"""SQLAlchemy engines for the configuration database, and sessions whose errors are of the catalogue.

sqlite:////var/lib/vadplab/configuration.db
postgresql://vadplab@config-db:5432/vadplab          (the password is in a file of its own, never in the URL)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from engine.config import EngineConfig
from engine.dialer import Dialer
from engine.errors import ConnectReset, InputError, MissingError
from engine.events import EventLog
from engine.model.postgres import PORT, Postgres

POOL = 3


class DatabaseFailed(MissingError):
    """The configuration database cannot be opened or used."""

    code = "database.failed"
    advice = "Check the database's URL in the configuration, its folder's rights, and free space."


class DatabaseUrl(InputError):
    """The URL of the configuration database cannot be used."""

    code = "database.url"
    advice = "Write sqlite:///FILE or postgresql://USER@HOST:5432/DATABASE, and the password into a file of its own."


@dataclass(frozen=True, slots=True)
class Place:
    """Where the configuration database is: a file, or a server with its name."""

    url: URL
    server: Postgres | None

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a local file: then no connection belongs to it."""
        return self.server is None


def place(url: str, *, password: Path | None = None, ca: Path | None = None, keylog: Path | None = None) -> Place:
    """What a URL of the configuration means. Raises DatabaseUrl; the message never holds the URL."""
    try:
        parsed = make_url(url)
    except ArgumentError as exc:
        raise DatabaseUrl("the configuration database's URL cannot be read") from exc
    match parsed.get_backend_name():
        case "sqlite":
            return Place(parsed, None)
        case "postgresql":
            if parsed.password is not None:
                raise DatabaseUrl("the configuration database's URL holds a password")
            if not (parsed.host and parsed.database and parsed.username):
                raise DatabaseUrl("the configuration database's URL needs a user, a host and a database")
            server = Postgres(parsed.host, parsed.port or PORT, parsed.database, parsed.username, password, ca, keylog)
            return Place(parsed, server)
    raise DatabaseUrl(f"the configuration database cannot be of the kind {parsed.get_backend_name()!r}")


def place_of(config: EngineConfig) -> Place:
    """Where the Backup Service's configuration database is. Raises InputError when this machine has none; DatabaseUrl."""
    if config.service is None:
        raise InputError(f"{config.name}: the configuration has no `service`")
    return place(
        config.service.database, password=config.service.database_password, ca=config.identity.ca, keylog=config.keylog
    )


def engine_for(where: Place, dialer: Dialer | None = None, *, step: str | None = None, single: bool = False) -> Engine:
    """An engine for that place; nothing is opened yet. `single`: there is one connection, which `step` opens.

    Raises:
        DatabaseFailed: the folder of a SQLite file cannot be made.
    """
    if where.server is None:
        try:
            if where.url.database and where.url.database != ":memory:":
                Path(where.url.database).parent.mkdir(parents=True, exist_ok=True)
            made = create_engine(where.url)
        except (SQLAlchemyError, OSError, NoSuchModuleError) as exc:
            raise DatabaseFailed(f"configuration database cannot be opened: {type(exc).__name__}") from exc
        event.listen(made, "connect", _sqlite_pragmas)
        return made
    server, used = where.server, dialer or Dialer(EventLog(None, host="?", process="?"))

    def creator() -> Any:
        return server.connect(used, step=step)

    if single:
        return create_engine("postgresql+psycopg://", creator=creator, pool_size=1, max_overflow=0, pool_timeout=10)
    return create_engine(
        "postgresql+psycopg://", creator=creator, pool_size=POOL, max_overflow=0, pool_timeout=10, pool_pre_ping=True
    )


class Sessions:
    """Sessions of an engine: `begin()` commits at the end, `read()` does not write. Both raise errors of the catalogue."""

    def __init__(self, engine: Engine, where: Place) -> None:
        self.engine = engine
        self.where = where
        self._make: sessionmaker[Session] = sessionmaker(engine)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction."""
        with guarded(self.where), self._make.begin() as session:
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for queries."""
        with guarded(self.where), self._make() as session:
            yield session


@contextmanager
def guarded(where: Place) -> Iterator[None]:
    """Turns errors of SQLAlchemy into errors of the catalogue; texts never hold statements or values."""
    try:
        yield
    except DBAPIError as exc:
        if where.server is not None and exc.connection_invalidated:
            name, port = where.server.host, where.server.port
            raise ConnectReset(f"{name}:{port}: the connection was cut", target=name, port=port) from exc
        raise DatabaseFailed(f"configuration database: {type(exc.orig).__name__}") from exc
    except SQLAlchemyError as exc:
        raise DatabaseFailed(f"configuration database: {type(exc).__name__}") from exc


def _sqlite_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
