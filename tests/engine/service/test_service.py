# SPDX-License-Identifier: MIT
"""The Backup Service: runs are queued, watched and stopped; a dead manager's mess is put right; managers come from loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.errors import RemoteError
from engine.model.connect import place_of
from engine.model.database import Database
from engine.model.infrastructure import load as load_infrastructure
from engine.model.secrets import SecretBox
from engine.rpc.client import Client
from engine.service import jobs as jobs_module
from engine.service.service import BackupService
from engine.vsphere import Disk, GuestInfo, VmInfo
from tests.engine.machines import REPOSITORY, Machines
from tests.engine.pki import Pki
from tests.engine.service.stub_manager import PENDING
from tests.engine.waiting import until

STUB = "tests.engine.service.stub_manager"
JOBS = ("quick", "slow", "dies", "mute", "orphan")
VM = VmInfo(
    "vm-1", "linux-vm", "uuid", "[ds] l/l.vmx", True, "esxi-1",
    (Disk(2000, "Hard disk 1", "[ds] l/l.vmdk", 1 << 20),), GuestInfo(True, "linuxGuest", "l", "10.0.0.9"),
)  # fmt: skip


class FakeRecovery:
    """In place of `Aftermath`: remembers what it was asked, and leaves nothing (or what a test says)."""

    asked: list[tuple[str, dict[str, Any]]]
    leaves: dict[str, Any]

    def __init__(self, config: Any, events: Any, session: str) -> None:
        self.session = session

    async def run(self, pending: dict[str, Any], **_: Any) -> dict[str, Any]:
        type(self).asked.append((self.session, pending))
        return type(self).leaves


@pytest.fixture(autouse=True)
def recovery(monkeypatch: pytest.MonkeyPatch) -> type[FakeRecovery]:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    kind = type("Aftermath", (FakeRecovery,), {"asked": [], "leaves": {}})
    monkeypatch.setattr(jobs_module, "Aftermath", kind)
    return kind


class Site:
    """A backup server with its database; the service can be started again over the same files."""

    def __init__(
        self,
        folder: Path,
        *,
        max_tasks: int = 1,
        resolver: dict[str, str] | None = None,
        ca: Pki | None = None,
        **more: Any,
    ) -> None:
        self.machines = Machines(folder)
        if ca is not None:  # of a database server that was there before
            self.machines.pki.authority = ca.authority
            ca.authority.cert_pem.write_to_path(self.machines.pki.ca)
        settings = {
            "database": f"sqlite:///{folder}/db.sqlite", "secrets_key": "key", "infrastructure": "infra.yaml", **more,
        }  # fmt: skip
        self.path = self.machines.path("backup-server", service=settings, resolver=resolver or {})
        self.config = self.machines.config("backup-server", service=settings, resolver=resolver or {})
        (folder / "infra.yaml").write_text(
            yaml.safe_dump({
                "vcenters": [{"name": "vcenter", "username": "u", "password": "p"}],
                "servers": [
                    {"name": "proxy-1", "roles": ["proxy"], "max_tasks": max_tasks},
                    {"name": "repository-1", "roles": ["repository"]},
                ],
                "jobs": [{"name": name, "vms": ["linux-vm"]} for name in JOBS],
            })
        )  # fmt: skip
        database = self.database()
        database.store_infrastructure(load_infrastructure(folder / "infra.yaml"))
        database.store_inventory("vcenter", None, [VM])
        database.close()

    def database(self) -> Database:
        assert self.config.service is not None
        dialer = self.config.dialer(self.config.event_log("service"))
        return Database(place_of(self.config), SecretBox(self.config.service.secrets_key), dialer=dialer)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[tuple[BackupService, Client]]:
        service = BackupService(self.config, self.path, self.database(), manager_module=STUB)
        port = await service.start()
        client = await self.machines.client(port, to="backup-server")
        try:
            yield service, client
        finally:
            await client.close()
            await service.close()

    async def client(self, service: BackupService, *, by: str = "console") -> Client:
        return await self.machines.client(service.jobs.port, to="backup-server", by=by)


async def run_job(
    client: Client, name: str, seen: list[dict[str, Any]] | None = None, **options: Any
) -> dict[str, Any]:
    found: dict[str, Any] = await client.call(
        "job.run", deadline=30, name=name, on_progress=(seen if seen is not None else []).append, **options
    )
    return found


def test_a_run_with_its_options_progress_and_record(tmp_path: Path) -> None:
    async def main() -> None:
        site = Site(tmp_path)
        async with site.serving() as (service, client):
            seen: list[dict[str, Any]] = []
            result = await run_job(client, "quick", seen, mode="nbd", session="mine")
            assert (result["result"], result["run"], result["mode"]) == ("success", "mine", "nbd")
            assert result["plan"]["slots"] == {"proxy-1": 1, "repository-1": 1}
            assert [p["phase"] for p in seen if p["kind"] == "step" and p["step"] == "1"] == ["begin", "end"]
            assert any(p.get("text") == "quick" for p in seen)
            assert not service.broker.load()
            sessions = (await client.call("session.list"))["sessions"]
            assert [(s["id"], s["state"], s["result"]) for s in sessions] == [("mine", "ended", "success")]
            shown = await client.call("job.show", name="quick")
            assert shown["last_runs"][0]["id"] == "mine" and shown["vms"][0]["name"] == "linux-vm"
            assert service.database.placements("quick") == {"linux-vm": "repository-1"}

    asyncio.run(main())


def test_second_run_is_queued_and_stop_ends_both(tmp_path: Path) -> None:
    async def main() -> None:
        site = Site(tmp_path)
        async with site.serving() as (service, client):
            seen: list[dict[str, Any]] = []
            later: list[dict[str, Any]] = []
            first = asyncio.create_task(run_job(client, "slow", seen, session="one"))
            await until(lambda: any(p.get("text") == "slow" for p in seen), deadline=20)
            second = asyncio.create_task(run_job(client, "slow", later, session="two"))
            await until(lambda: any("queued" in p.get("text", "") for p in later))
            assert [s["state"] for s in service.database.sessions()] == ["queued", "running"]
            stopped = await client.call("job.stop", name="slow", deadline=30)
            assert sorted(stopped["stopped"]) == ["one", "two"]
            for task in (first, second):
                result = await task
                assert result["result"] == "failed" and result["error"]["code"] == "job.stopped"
            with pytest.raises(RemoteError) as caught:
                await client.call("job.stop", name="slow")
            assert caught.value.to_dict()["code"] == "job.not-running"

    asyncio.run(main())


def test_other_job_waits_for_a_slot(tmp_path: Path) -> None:
    async def main() -> None:
        site = Site(tmp_path, max_tasks=1)
        async with site.serving() as (service, client):
            seen: list[dict[str, Any]] = []
            slow = asyncio.create_task(run_job(client, "slow", seen))
            await until(lambda: any(p.get("text") == "slow" for p in seen), deadline=20)
            quick = asyncio.create_task(run_job(client, "quick"))
            await until(lambda: len(service.broker._line) == 1, deadline=20)
            assert not quick.done()
            await client.call("job.stop", name="slow", deadline=30)
            assert (await quick)["result"] == "success" and (await slow)["result"] == "failed"

    asyncio.run(main())


def test_console_that_leaves_does_not_stop_the_run(tmp_path: Path) -> None:
    async def main() -> None:
        site = Site(tmp_path)
        async with site.serving() as (service, client):
            gone = await site.client(service)
            seen: list[dict[str, Any]] = []
            running = asyncio.create_task(run_job(gone, "slow", seen, session="one"))
            await until(lambda: any(p.get("text") == "slow" for p in seen), deadline=20)
            await gone.close()
            with pytest.raises(Exception, match="cut"):
                await running
            assert service.database.sessions()[0]["state"] == "running"
            await client.call("job.stop", name="slow", deadline=30)
            assert service.database.sessions()[0]["state"] == "ended"

    asyncio.run(main())


def test_dead_manager_is_reported_and_its_mess_put_right(tmp_path: Path, recovery: type[FakeRecovery]) -> None:
    async def main() -> None:
        site = Site(tmp_path)
        async with site.serving() as (service, client):
            result = await run_job(client, "dies", session="one")
            assert result["result"] == "failed" and result["error"]["code"] == "manager.died"
            assert recovery.asked == [("one", PENDING)] and result["left"] == {}
            assert "Nothing of this run is left behind" in result["error"]["next"]
            assert not service.broker.load() and service.database.unfinished() == []
            assert (await run_job(client, "mute"))["error"]["code"] == "manager.died"
            assert (await run_job(client, "quick"))["result"] == "success"
            assert len(recovery.asked) == 1

    asyncio.run(main())


def test_service_that_starts_again_puts_right_what_is_left(tmp_path: Path, recovery: type[FakeRecovery]) -> None:
    async def main() -> None:
        site = Site(tmp_path)
        recovery.leaves = PENDING  # the vCenter does not answer either
        async with site.serving() as (_, client):
            one = await run_job(client, "dies", session="one")
            assert one["left"] == PENDING
            assert "linux-vm: its snapshot may stay, its guest may be frozen" in one["error"]["next"]
            two = await run_job(client, "orphan", session="two")
            assert two["result"] == "success" and two["dead"] == ["one"], (
                "neither its own session nor another service's"
            )
        database = site.database()
        database.begin_session("three", "job", "quick")  # running when the service was killed
        database.close()
        recovery.leaves = {}
        recovery.asked.clear()
        async with site.serving() as (service, client):
            await asyncio.wait_for(service.jobs.recovered.wait(), 10)
            assert sorted(recovery.asked) == [("one", PENDING), ("two", {"linux-vm": {"snapshot": True}})]
            assert service.database.unfinished() == []
            (three,) = [s for s in service.database.sessions() if s["id"] == "three"]
            assert three["result"] == "failed" and three["document"]["error"]["code"] == "manager.died"
            assert "Nothing of this run is left behind" in three["document"]["error"]["next"]

    asyncio.run(main())


def test_closing_the_service_stops_runs(tmp_path: Path) -> None:
    async def main() -> None:
        site = Site(tmp_path)
        async with site.serving() as (_, client):
            seen: list[dict[str, Any]] = []
            running = asyncio.create_task(run_job(client, "slow", seen))
            await until(lambda: any(p.get("text") == "slow" for p in seen), deadline=20)
        await asyncio.gather(running, return_exceptions=True)
        database = site.database()
        assert [(s["state"], s["result"]) for s in database.sessions()] == [("ended", "failed")]
        database.close()

    asyncio.run(main())


def test_bad_calls(tmp_path: Path) -> None:
    async def main() -> None:
        site = Site(tmp_path)
        async with site.serving() as (service, client):
            cases: list[tuple[str, dict[str, Any], str, int]] = [
                ("job.run", {"name": "nothing"}, "job.unknown", 2),
                ("job.run", {"name": "quick", "mode": "pigeon"}, "input.invalid", 2),
                ("job.run", {"name": "quick", "direction": "up"}, "input.invalid", 2),
                ("job.run", {}, "wire.params", 1),
                ("job.show", {"name": "nothing"}, "job.unknown", 2),
                ("job.stop", {"name": "nothing"}, "job.unknown", 2),
                ("nonsense", {}, "wire.method", 1),
                ("manager.job", {"session": "x"}, "service.loopback-only", 1),
                ("resources.acquire", {"session": "x", "tasks": []}, "service.loopback-only", 1),
            ]
            for method, params, code, status in cases:
                with pytest.raises(RemoteError) as caught:
                    await client.call(method, **params)
                assert (caught.value.to_dict()["code"], caught.value.exit_code) == (code, status), method
            own = await site.client(service, by="backup-server")
            with pytest.raises(RemoteError) as caught:
                await own.call("manager.job", session="unknown")
            assert caught.value.to_dict()["code"] == "input.invalid"
            await own.close()
            first = await run_job(client, "quick", session="same")
            assert first["result"] == "success"
            with pytest.raises(RemoteError) as caught:
                await run_job(client, "quick", session="same")
            assert caught.value.to_dict()["code"] == "input.invalid"

    asyncio.run(main())
