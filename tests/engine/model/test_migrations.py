# SPDX-License-Identifier: MIT
"""Migrations, up and down, on SQLite and on a real PostgreSQL: what is made is what the tables say, and data survives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from engine.dialer import Dialer
from engine.events import EventLog
from engine.model import migrate
from engine.model.__main__ import main
from engine.model.connect import DatabaseFailed, Place, engine_for, place
from engine.model.database import Database
from engine.model.migrate import RevisionUnknown
from engine.model.secrets import SecretBox
from engine.model.tables import Base
from tests.engine.model.servers import NAME, Server, container, image, needs_postgres, serving
from tests.engine.model.test_database import VM, load


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


class Target:
    """A database of either kind, empty."""

    def __init__(self, where: Place, dialer: Dialer | None) -> None:
        self.where = where
        self.dialer = dialer

    def tables(self) -> set[str]:
        made = engine_for(self.where, self.dialer, single=True)
        try:
            return set(inspect(made).get_table_names()) - {"alembic_version"}
        finally:
            made.dispose()

    def run(self, *statements: str) -> None:
        made = engine_for(self.where, self.dialer, single=True)
        with made.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
        made.dispose()


@pytest.fixture(scope="module")
def contained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    tag = image()
    if tag is None:
        pytest.skip("no Docker engine that has a PostgreSQL image")
    with container(tmp_path_factory.mktemp("container"), tag) as where:
        yield where


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=needs_postgres),
        pytest.param("container", marks=pytest.mark.docker),
    ]
)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    if request.param == "sqlite":
        yield Target(place(f"sqlite:///{tmp_path}/db.sqlite"), None)
        return
    events = EventLog(None, host="test", process="test")
    if request.param == "container":
        made = Target(request.getfixturevalue("contained"), Dialer(events))
    else:
        found: Server = request.getfixturevalue("server")
        made = Target(found.place(), Dialer(events, found.resolver))
    made.run("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    yield made


def test_the_newest_revision_is_what_the_tables_say(target: Target) -> None:
    assert migrate.current(target.where, target.dialer) == "base"
    head = migrate.revisions()[-1]["revision"]
    assert migrate.upgrade(target.where, target.dialer) == head == migrate.upgrade(target.where, target.dialer)
    made = engine_for(target.where, target.dialer, single=True)
    with made.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    made.dispose()


def test_every_revision_goes_down_and_up_again(target: Target) -> None:
    names = [r["revision"] for r in migrate.revisions()]
    migrate.upgrade(target.where, target.dialer)
    for revision in [*reversed(names[:-1]), "base"]:
        assert migrate.downgrade(target.where, revision, target.dialer) == revision
        assert migrate.current(target.where, target.dialer) == revision
    assert target.tables() == set()
    for revision in names:
        assert migrate.upgrade(target.where, target.dialer, revision) == revision


def test_data_survives_down_and_up(target: Target, tmp_path: Path) -> None:
    box = SecretBox(tmp_path / "key")
    database = Database(target.where, box, dialer=target.dialer)
    database.store_infrastructure(load(tmp_path))
    database.store_inventory("vcenter", None, [VM])
    database.begin_session("s1", "job", "demo")
    database.job_book.create({"name": "mine", "vms": ["linux-vm"]})
    database.job_book.schedule("demo", {"cron": "0 22 * * *"})
    database.server_book.limit("proxy-1", 1)
    database.tokens.issue("t", 1)
    database.close()
    migrate.downgrade(target.where, "0001", target.dialer)
    again = Database(target.where, box, dialer=target.dialer)  # a service starts: it upgrades
    found = again.job_inputs("demo")
    assert found["vms"][0]["disks"][0]["capacity"] == 5 << 40 and found["vcenter"]["password"]
    assert [s["id"] for s in again.sessions()] == ["s1"]
    assert [(j["name"], j["origin"], j["enabled"], j["schedule"]) for j in again.jobs()] == [
        ("demo", "file", True, None)
    ]
    assert [(s["limit"], s["origin"]) for s in again.servers()] == [(None, "file")] * 2
    assert again.tokens.entries() == []
    again.close()


def test_a_database_from_before_migrations_is_taken_over(target: Target, tmp_path: Path) -> None:
    migrate.upgrade(target.where, target.dialer, "0001")
    target.run("DROP TABLE alembic_version", "INSERT INTO placements (job, vm, repository) VALUES ('j', 'v', 'r')")
    assert migrate.current(target.where, target.dialer) == "0001"
    database = Database(target.where, SecretBox(tmp_path / "key"), dialer=target.dialer)
    assert database.placements("j") == {"v": "r"}
    database.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(target: Target) -> None:
    migrate.upgrade(target.where, target.dialer, "0001")
    before = target.tables()
    target.run("CREATE TABLE tokens (digest INTEGER)")  # in the way of 0002's last statement
    with pytest.raises(DatabaseFailed):
        migrate.upgrade(target.where, target.dialer)
    target.run("DROP TABLE tokens")
    assert migrate.current(target.where, target.dialer) == "0001" and target.tables() == before
    made = engine_for(target.where, target.dialer, single=True)
    assert {c["name"] for c in inspect(made).get_columns("jobs")} == {"name", "settings"}
    made.dispose()
    assert migrate.upgrade(target.where, target.dialer) == migrate.revisions()[-1]["revision"]


def test_a_field_that_jobs_had_once_goes(target: Target, tmp_path: Path) -> None:
    """A service that knows it no more reads the job, whose other settings stay."""
    migrate.upgrade(target.where, target.dialer, "0002")
    settings = {"name": "old", "vms": ["a"], "rules": {"cluster_bits": 16, "workers": 3}}
    bare = {"name": "bare", "vms": ["b"]}
    for job in (settings, bare):
        target.run(
            f"INSERT INTO jobs (name, settings, origin, enabled) VALUES ('{job['name']}', '{json.dumps(job)}', 'console', true)"
        )
    database = Database(target.where, SecretBox(tmp_path / "key"), dialer=target.dialer)
    assert database.job_book.get("old").rules.workers == 3
    assert database.job_book.get("bare").vms == ["b"]
    database.close()


def test_unknown_revisions_are_refused(target: Target) -> None:
    for revision in ("0099", "nonsense"):
        with pytest.raises(RevisionUnknown):
            migrate.upgrade(target.where, target.dialer, revision)
    migrate.upgrade(target.where, target.dialer)
    target.run("UPDATE alembic_version SET version_num = '0099'")  # made by a newer engine
    with pytest.raises(RevisionUnknown):
        migrate.upgrade(target.where, target.dialer)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*command: str) -> tuple[int, dict[str, Any]]:
        code = main(["--config", str(tmp_path / "engine.yaml"), *command])
        out = capsys.readouterr().out
        return code, json.loads(out) if out else {}

    service = {"database": f"sqlite:///{tmp_path}/db", "secrets_key": "key", "infrastructure": "infra.yaml"}
    config = {"name": NAME, "identity": {"certificate": "x.pem", "ca": "ca.pem"}, "service": service}
    (tmp_path / "engine.yaml").write_text(yaml.safe_dump(config))
    assert run("current") == (0, {"schema": "vadplab.database/1", "revision": "base"})
    assert run("upgrade")[1]["revision"] == "0003"
    assert run("downgrade", "0001")[1]["revision"] == "0001" == run("current")[1]["revision"]
    assert [r["revision"] for r in run("revisions")[1]["revisions"]] == ["0001", "0002", "0003"]
    assert run("upgrade", "0099")[0] == 2
