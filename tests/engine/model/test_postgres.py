# SPDX-License-Identifier: MIT
"""PostgreSQL as the configuration database: the same results as SQLite, verified TLS, and each way to fail by its name."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from engine.dialer import Dialer
from engine.errors import ConnectRefused, ConnectReset, ConnectTimedOut, NameNotResolved
from engine.events import EventLog
from engine.model import migrate
from engine.model.connect import DatabaseUrl, place
from engine.model.database import Database
from engine.model.postgres import DatabasePassword, LoginRefused, ServerTls
from engine.model.secrets import SecretBox
from tests.engine.model.servers import NAME, Server, needs_postgres, serving
from tests.engine.model.test_database import VM, load
from tests.engine.pki import Pki
from tests.engine.service.test_service import Site, recovery, run_job  # noqa: F401  (a fixture)

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


@pytest.fixture
def fresh(server: Server) -> Server:
    with psycopg.connect(server.superuser, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public AUTHORIZATION vadplab")
    return server


def dialer(server: Server, folder: Path, **more: Any) -> Dialer:
    return Dialer(EventLog(folder / "events.jsonl", host="backup-server", process="test"), server.resolver, **more)


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_the_same_as_sqlite(fresh: Server, tmp_path: Path) -> None:
    box = SecretBox(tmp_path / "key")
    found = []
    for where, via in ((fresh.place(), dialer(fresh, tmp_path)), (place(f"sqlite:///{tmp_path}/db"), None)):
        database = Database(where, box, dialer=via)
        database.store_infrastructure(load(tmp_path))
        database.store_inventory("vcenter", "ab" * 32, [VM, replace(VM, moref="vm-2", name="ü", uuid="other")])
        database.store_facts("proxy-1", {"version": "1"}, None)
        database.begin_session("s1", "job", "demo")
        database.set_pending("s1", {"linux-vm": {"snapshot": True}})
        database.place("demo", "linux-vm", "repository-1")
        database.place("demo", "linux-vm", "repository-2")
        database.job_book.create({"name": "Mine", "vms": ["ü"]})
        database.store_infrastructure(load(tmp_path, jobs=[]))
        unfinished = [{k: v for k, v in s.items() if k != "created"} for s in database.unfinished()]
        found.append((database.show(), database.jobs(), unfinished, database.placements("demo")))
        database.close()
    assert found[0] == found[1]


def test_a_step_opens_one_connection_of_its_own(fresh: Server, tmp_path: Path) -> None:
    database = Database(fresh.place(), SecretBox(tmp_path / "key"), dialer=dialer(fresh, tmp_path))
    database.store_infrastructure(load(tmp_path))
    database.store_inventory("vcenter", None, [VM])
    (tmp_path / "events.jsonl").unlink()
    with database.for_step("3", dialer(fresh, tmp_path)) as step:
        assert step.job_inputs("demo")["vms"][0]["name"] == "linux-vm"
    attempt, outcome = events(tmp_path)
    assert (attempt["kind"], attempt["step"], attempt["target"]) == ("attempt", "3", NAME)
    assert attempt["remote"] == ["127.0.0.1", fresh.port] and attempt["local"][1] > 0
    assert (outcome["kind"], outcome["outcome"], outcome["attempt"]) == ("outcome", "open", attempt["attempt"])
    with psycopg.connect(fresh.superuser) as connection:
        used = connection.execute(
            "SELECT ssl, version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'vadplab'"
        ).fetchall()
    assert used and set(used) == {(True, "TLSv1.3")}
    database.close()


def test_a_cut_connection_is_made_anew(fresh: Server, tmp_path: Path) -> None:
    database = Database(fresh.place(), SecretBox(tmp_path / "key"), dialer=dialer(fresh, tmp_path))
    database.begin_session("s1", "job", "demo")
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'vadplab'"
    with psycopg.connect(fresh.superuser, autocommit=True) as connection:
        assert connection.execute(cut).fetchall()
    assert [s["id"] for s in database.sessions()] == ["s1"]
    with pytest.raises(ConnectReset), database._sessions.begin() as session:
        session.connection()
        with psycopg.connect(fresh.superuser, autocommit=True) as connection:
            connection.execute(cut)
        session.connection().exec_driver_sql("SELECT 1")
    database.close()


def test_each_failure_has_its_name(fresh: Server, tmp_path: Path) -> None:
    other = Pki(_folder(tmp_path / "other"))
    (tmp_path / "wrong").write_text("nonsense")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        free = int(closed.getsockname()[1])
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"port": free}, ConnectRefused, "refused"),
        ({"password": tmp_path / "wrong"}, LoginRefused, "open"),
        ({"database": "nothing"}, LoginRefused, "open"),
        ({"user": "nobody"}, LoginRefused, "open"),
        ({"ca": other.ca}, ServerTls, "open"),
        ({"host": "127.0.0.1"}, ServerTls, "open"),  # not the name in its certificate
        ({"host": "no-such-host.invalid"}, NameNotResolved, "name not resolved"),
    ]
    for changes, kind, outcome in cases:
        with pytest.raises(kind) as caught:
            migrate.current(fresh.place(**changes), dialer(fresh, tmp_path))
        assert "nonsense" not in str(caught.value) and caught.value.target, changes  # type: ignore[attr-defined]
        assert events(tmp_path)[-1]["outcome"] == outcome, changes
    with pytest.raises(DatabasePassword):
        migrate.current(fresh.place(password=tmp_path / "none"), dialer(fresh, tmp_path))


def test_a_server_that_says_nothing(fresh: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.model.postgres.LOGIN_DEADLINE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        held: list[socket.socket] = []
        thread = threading.Thread(target=lambda: held.append(mute.accept()[0]))
        thread.start()
        with pytest.raises(ConnectTimedOut):
            migrate.current(fresh.place(port=int(mute.getsockname()[1])), dialer(fresh, tmp_path))
        thread.join(5)
        held[0].close()
    assert [e["outcome"] for e in events(tmp_path) if e["kind"] == "outcome"] == ["open"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:S3cret@h/d",
        "postgresql://h/d",
        "postgresql://u@h",
        "mysql://u@h/d",
        "nonsense",
        "postgresql:///d",
    ],
)
def test_bad_urls_are_refused_and_never_repeated(url: str) -> None:
    with pytest.raises(DatabaseUrl) as caught:
        place(url)
    assert "S3cret" not in str(caught.value)


def test_a_run_over_postgres_reads_its_job_in_step_3(fresh: Server, tmp_path: Path) -> None:
    settings = {"database": fresh.url, "database_password": str(fresh.password)}

    async def main() -> None:
        site = Site(tmp_path, resolver=fresh.resolver, ca=fresh.pki, **settings)
        async with site.serving() as (_, client):
            result = await run_job(client, "quick", session="mine")
            assert result["result"] == "success"

    asyncio.run(main())
    own = [json.loads(line) for line in (tmp_path / "backup-server.jsonl").read_text().splitlines()]
    opened = [e for e in own if e["kind"] == "attempt" and e["session"] == "mine" and e["target"] == NAME]
    assert [e["step"] for e in opened] == ["3"]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
