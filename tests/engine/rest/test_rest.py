# SPDX-License-Identifier: MIT
"""The REST service over real HTTPS: tokens, routes, bad requests; a job started here is the run that consoles see."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from engine.config import BackupServer
from engine.errors import ConnectRefused, MissingError, RemoteError
from engine.events import EventLog
from engine.rest.client import RestClient, TokenMissing, read_token
from engine.rpc.identity import WrongPeer
from engine.service.service import BackupService
from tests.engine.service.test_service import Site, recovery  # noqa: F401  (a fixture)
from tests.engine.waiting import until

T = TypeVar("T")


class Rest:
    """A site whose service has REST, and clients of it (blocking ones, each call in a thread)."""

    def __init__(self, folder: Path, service: BackupService, site: Site) -> None:
        self.folder = folder
        self.service = service
        assert service.rest_port is not None
        self.port = service.rest_port
        self.config = site.machines.config(
            "console",
            backup_server={"name": "backup-server", "rest_port": self.port},
            resolver={"backup-server": "127.0.0.1"},
        )
        self.token = str(service.database.tokens.issue("script", 1)["token"])

    async def call(self, work: Callable[[RestClient], T], *, token: str | None = None) -> T:
        def blocking() -> T:
            events = EventLog(self.folder / "rest.jsonl", host="console", process="console")
            with RestClient(self.config, events, self.token if token is None else token) as client:
                return work(client)

        return await asyncio.to_thread(blocking)

    async def raw(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Any request, as a script of somebody else would send it."""

        def blocking() -> tuple[int, dict[str, str], Any]:
            context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
            context.check_hostname = False
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=context)
            try:
                connection.request(method, path, body, headers if headers is not None else self.bearer(self.token))
                answer = connection.getresponse()
                text = answer.read()
                return answer.status, dict(answer.getheaders()), json.loads(text) if text else None
            finally:
                connection.close()

        return await asyncio.to_thread(blocking)

    @staticmethod
    def bearer(token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}


def with_rest(folder: Path, work: Callable[[Rest], Any]) -> None:
    async def main() -> None:
        site = Site(folder, rest_port=0)
        async with site.serving() as (service, _):
            await work(Rest(folder, service, site))

    asyncio.run(main())


def test_started_over_rest_is_the_same_run(tmp_path: Path) -> None:
    async def work(rest: Rest) -> None:
        started = await rest.call(lambda c: c.start("quick", {"mode": "nbd", "session": "mine"}))
        assert started == {"session": "mine", "job": "quick", "location": "/api/v1/sessions/mine"}
        ended = await rest.call(lambda c: c.wait("mine"))
        assert (ended["state"], ended["result"], ended["document"]["mode"]) == ("ended", "success", "nbd")
        assert [s["id"] for s in rest.service.database.sessions()] == ["mine"]
        events = [json.loads(line) for line in (tmp_path / "rest.jsonl").read_text().splitlines()]
        assert [(e["kind"], e["step"], e.get("outcome")) for e in events[:2]] == [
            ("attempt", "1", None), ("outcome", "1", "open"),
        ]  # fmt: skip
        own = [json.loads(line) for line in (tmp_path / "backup-server.jsonl").read_text().splitlines()]
        begun = [e for e in own if e["kind"] == "step" and e["step"] == "1" and e["phase"] == "begin"]
        assert [(e["session"], e["data"]) for e in begun] == [("mine", {"job": "quick", "trigger": "rest"})]
        listed = await rest.call(lambda c: c.request("GET", "/api/v1/sessions?job=quick"))
        assert [s["id"] for s in listed["sessions"]] == ["mine"] and "document" not in listed["sessions"][0]

    with_rest(tmp_path, work)


def test_reads_and_stop(tmp_path: Path) -> None:
    async def work(rest: Rest) -> None:
        jobs = (await rest.call(lambda c: c.request("GET", "/api/v1/jobs")))["jobs"]
        assert {j["name"] for j in jobs} >= {"quick", "slow"} and jobs[0]["origin"] == "file"
        one = await rest.call(lambda c: c.request("GET", "/api/v1/jobs/quick"))
        assert one["job"]["vms"] == ["linux-vm"] and one["vms"][0]["disks"][0]["key"] == 2000
        infrastructure = await rest.call(lambda c: c.request("GET", "/api/v1/infrastructure"))
        assert {s["name"] for s in infrastructure["servers"]} == {"proxy-1", "repository-1"}
        assert "password" not in json.dumps(infrastructure)
        with pytest.raises(RemoteError) as caught:  # the repository of this site does not answer
            await rest.call(lambda c: c.request("GET", "/api/v1/points"))
        assert caught.value.to_dict()["code"].startswith("connect.")
        started = await rest.call(lambda c: c.start("slow", {}))
        assert started["session"]
        states = lambda: {s["state"] for s in rest.service.database.sessions(subject="slow")}  # noqa: E731
        await until(lambda: states() == {"running"}, deadline=20)
        waited = await rest.call(lambda c: c.wait(started["session"], 0.1))
        assert waited["state"] == "running"
        stopped = await rest.call(lambda c: c.stop("slow"))
        assert stopped == {"job": "slow", "stopped": [started["session"]]}
        assert states() == {"ended"}

    with_rest(tmp_path, work)


def test_tokens(tmp_path: Path) -> None:
    async def work(rest: Rest) -> None:
        database = rest.service.database
        shown = await rest.call(lambda c: c.request("GET", "/api/v1/token"))
        assert shown["name"] == "script" and shown["expires"] - shown["created"] == 3600 * 10**9
        assert rest.token.encode() not in b"".join(p.read_bytes() for p in tmp_path.glob("db.sqlite*"))
        old = database.tokens.issue("old", 1, now=time.time_ns() - 2 * 3600 * 10**9)["token"]
        for wrong in ("", "x", rest.token[:-1], rest.token + "x", old):
            status, headers, body = await rest.raw("GET", "/api/v1/jobs", headers=rest.bearer(wrong))
            assert (status, body["error"]["code"]) == (401, "rest.token"), wrong
            assert {k.lower(): v for k, v in headers.items()}["www-authenticate"] == "Bearer"
        for headers in ({}, {"Authorization": f"Basic {rest.token}"}):
            assert (await rest.raw("POST", "/api/v1/jobs/quick/start", headers=headers))[0] == 401
        assert database.sessions() == []
        assert (await rest.raw("DELETE", "/api/v1/token"))[0] == 204
        assert (await rest.raw("GET", "/api/v1/jobs"))[0] == 401
        assert [t["name"] for t in database.tokens.entries()] == ["old"]

    with_rest(tmp_path, work)


def test_bad_requests(tmp_path: Path) -> None:
    async def work(rest: Rest) -> None:
        rest.service.database.job_book.enable("mute", False)
        cases: list[tuple[str, str, bytes | None, int, str]] = [
            ("POST", "/api/v1/jobs/nothing/start", None, 404, "job.unknown"),
            ("GET", "/api/v1/jobs/nothing", None, 404, "job.unknown"),
            ("POST", "/api/v1/jobs/quick/stop", None, 409, "job.not-running"),
            ("POST", "/api/v1/jobs/mute/start", None, 409, "job.disabled"),
            ("POST", "/api/v1/jobs/quick/start", b'{"mode": "carrier-pigeon"}', 400, "input.invalid"),
            ("POST", "/api/v1/jobs/quick/start", b'{"colour": 1}', 400, "input.invalid"),
            ("POST", "/api/v1/jobs/quick/start", b'{"session": "../x"}', 400, "input.invalid"),
            ("POST", "/api/v1/jobs/quick/start", b"{", 400, "input.invalid"),
            ("POST", "/api/v1/jobs/quick/start", b" " * 70_000, 413, "rest.too-large"),
            ("GET", "/api/v1/sessions/nothing", None, 404, "session.unknown"),
            ("GET", "/api/v1/sessions/nothing?wait=1e9", None, 400, "input.invalid"),
            ("GET", "/api/v1/sessions?limit=0", None, 400, "input.invalid"),
            ("GET", "/nothing", None, 404, "input.invalid"),
            ("PUT", "/api/v1/jobs", None, 405, "input.invalid"),
        ]
        for method, path, body, status, code in cases:
            found = await rest.raw(method, path, body)
            assert (found[0], found[2]["error"]["code"]) == (status, code), (method, path, found)
            assert found[2]["error"]["next"]
        assert rest.service.database.sessions() == []

    with_rest(tmp_path, work)


def test_openapi_names_every_route(tmp_path: Path) -> None:
    async def work(rest: Rest) -> None:
        status, _, document = await rest.raw("GET", "/api/v1/openapi.json", headers={})
        assert status == 200 and document["openapi"].startswith("3.")
        routes = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
        assert routes == {
            ("GET", "/api/v1/token"), ("DELETE", "/api/v1/token"), ("GET", "/api/v1/jobs"),
            ("GET", "/api/v1/jobs/{name}"), ("POST", "/api/v1/jobs/{name}/start"), ("POST", "/api/v1/jobs/{name}/stop"),
            ("GET", "/api/v1/sessions"), ("GET", "/api/v1/sessions/{session}"), ("GET", "/api/v1/points"),
            ("GET", "/api/v1/infrastructure"),
        }  # fmt: skip
        for methods in document["paths"].values():
            for operation in methods.values():
                assert operation["security"] == [{"HTTPBearer": []}]

    with_rest(tmp_path, work)


def test_client_checks_who_answers(tmp_path: Path) -> None:
    async def work(rest: Rest) -> None:
        other = rest.config.model_copy(update={"backup_server": BackupServer(name="other", rest_port=rest.port)})
        other = other.model_copy(update={"resolver": {"other": "127.0.0.1"}})
        rest.config, kept = other, rest.config
        with pytest.raises(WrongPeer):
            await rest.call(lambda c: c.request("GET", "/api/v1/jobs"))
        rest.config = kept.model_copy(update={"backup_server": BackupServer(name="backup-server", rest_port=1)})
        with pytest.raises(ConnectRefused):
            await rest.call(lambda c: c.request("GET", "/api/v1/jobs"))
        with pytest.raises(TokenMissing):
            read_token(tmp_path / "none")

    with_rest(tmp_path, work)


def test_port_taken(tmp_path: Path) -> None:
    async def main() -> None:
        site = Site(tmp_path, rest_port=0)
        async with site.serving() as (service, _):
            again = Site(tmp_path, rest_port=service.rest_port)
            other = BackupService(again.config, again.path, again.database())
            with pytest.raises(Exception, match="cannot listen") as caught:
                await other.start()
            assert not isinstance(caught.value, MissingError)
            await other.close()

    asyncio.run(main())
