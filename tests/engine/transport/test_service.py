# SPDX-License-Identifier: MIT
"""The Transport Service: movers start, are watched and reaped; restore points go through the store."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.errors import RemoteError
from engine.modes.names import configured
from engine.rpc.client import Client
from engine.transport.movers import Movers
from engine.transport.service import TransportService, roles
from tests.engine.machines import REPOSITORY, Machines
from tests.engine.store import disks
from tests.engine.waiting import until

STUB = "tests.engine.transport.stub_mover"


@pytest.fixture(autouse=True)
def _from_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@asynccontextmanager
async def serving(folder: Path, **fields: Any) -> AsyncIterator[tuple[TransportService, Client, Machines, int]]:
    machines = Machines(folder)
    path = machines.path("repository-1", **fields)
    service = TransportService(machines.config("repository-1", **fields), Movers(path, STUB))
    port = await service.start()
    client = await machines.client(port, to="repository-1", by="backup-server")
    await client.call("hello", added=True)
    try:
        yield service, client, machines, port
    finally:
        await client.close()
        await service.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_movers_start_stop_and_are_reaped(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, repository="points") as (service, client, _, _port):
            hello = await client.call("hello")
            assert hello["name"] == "repository-1" and hello["roles"] == ["repository"]
            assert hello["mover_ports"] == [2500, 3300] and hello["free_bytes"] > 0
            one = await client.call("mover.start", session="s", task="vm:2000", role="source", deadline=20)
            two = await client.call("mover.start", session="s", task="vm:2000", role="target", deadline=20)
            assert one["port"] == 2500 and one["token"] != two["token"] and service.movers.count == 2
            os.kill(int(one["token"]), signal.SIGKILL)
            await until(lambda: service.movers.count == 1)
            assert (await client.call("mover.stop", session="s"))["stopped"] == 1
            assert not alive(int(two["token"])) and service.movers.count == 0

    asyncio.run(main())


def test_movers_end_with_their_manager_and_with_the_service(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, repository="points") as (service, client, machines, port):
            other = await machines.client(port, to="repository-1", by="backup-server")
            kept = await client.call("mover.start", session="kept", task="a", role="source", deadline=20)
            lost = await other.call("mover.start", session="lost", task="a", role="source", deadline=20)
            await other.call("point.begin", job="j", vm="v", point="20261125T071500Z-3f2a")
            assert list((tmp_path / "points/j/v").iterdir())
            await other.close()
            await until(lambda: service.movers.count == 1)
            await until(lambda: not alive(int(lost["token"])) and not list((tmp_path / "points/j/v").iterdir()))
            assert alive(int(kept["token"]))
        assert not alive(int(kept["token"]))

    asyncio.run(main())


def test_killed_service_leaves_no_mover(tmp_path: Path) -> None:
    async def main() -> None:
        machines = Machines(tmp_path)
        path = machines.path("proxy-1")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "engine.transport", "--config", str(path), "--mover-module", STUB,
            stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            ready = await asyncio.wait_for(process.stdout.readline(), 20)
            port = int(ready.decode().split(":")[1].rstrip("}\n"))
            client = await machines.client(port, to="proxy-1")
            mover = await client.call("mover.start", session="s", task="a", role="source", deadline=20)
            process.kill()
            await process.wait()
            await until(lambda: not alive(int(mover["token"])))
            await client.close()
        finally:
            if process.returncode is None:
                process.kill()

    asyncio.run(main())


def test_a_missing_repository_is_made_when_it_is_added_and_never_again(tmp_path: Path) -> None:
    folder = tmp_path / "disk" / "points"

    async def main() -> None:
        async with serving(tmp_path, repository="disk/points") as (_, client, machines, _port):
            assert folder.is_dir() and not list(folder.iterdir()), "a disk may still be mounted there"
            await client.call("point.begin", job="j", vm="v", point="20261125T071500Z-3f2a")
        # Its file system is not mounted: the id beside the folder went along.
        (tmp_path / "disk").rename(tmp_path / "away")
        (tmp_path / "disk").mkdir()
        path = machines.path("repository-1", repository="disk/points")
        service = TransportService(machines.config("repository-1", repository="disk/points"), Movers(path, STUB))
        client = await machines.client(await service.start(), to="repository-1", by="backup-server")
        try:
            for method, params in (
                ("hello", {}),
                ("points.list", {}),
                ("point.begin", {"job": "j", "vm": "v", "point": "20261125T071500Z-3f2a"}),
            ):
                with pytest.raises(RemoteError) as caught:
                    await client.call(method, **params)
                assert caught.value.to_dict()["code"] == "store.gone" and str(folder) in str(caught.value)
            assert list((tmp_path / "disk").iterdir()) == [], "something was written beneath the mount point"
            (tmp_path / "disk").rmdir()
            (tmp_path / "away").rename(tmp_path / "disk")
            assert (await client.call("hello"))["free_bytes"] > 0
        finally:
            await client.close()
            await service.close()

    asyncio.run(main())


def test_refusals(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (service, client, _, _port):
            cases: list[tuple[str, dict[str, Any], str]] = [
                ("mover.start", {"session": "s", "task": "silent", "role": "source"}, "process.failed"),
                ("mover.start", {"session": "s", "task": "mute", "role": "source"}, "process.failed"),
                ("mover.start", {"session": "s", "task": "a", "role": "king"}, "wire.params"),
                ("mover.start", {"session": "s", "task": "a", "role": "target"}, "transport.not-a-repository"),
                ("mover.start", {"session": "s", "role": "source"}, "wire.params"),
                ("points.list", {}, "transport.not-a-repository"),
                ("nonsense", {}, "wire.method"),
            ]
            for method, params, code in cases:
                with pytest.raises(RemoteError) as caught:
                    await client.call(method, deadline=20, **params)
                assert caught.value.to_dict()["code"] == code, method
            assert service.movers.count == 0 and (await client.call("hello"))["roles"] == ["proxy"]

    asyncio.run(main())


def test_points_go_through_the_store(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, repository="points") as (_, client, _, _port):
            where: dict[str, Any] = {"job": "demo", "vm": "linux-vm", "point": "20261125T071500Z-3f2a"}
            folder = Path((await client.call("point.begin", **where))["folder"])
            assert folder.is_dir() and folder.name.startswith(".partial-")
            assert (await client.call("points.list"))["points"] == []
            for method, params, code in (
                ("point.begin", where, "store.busy"),
                ("point.commit", {**where, "manifest": {}}, "store.format"),
                ("points.find", {"point": where["point"]}, "store.not-found"),
            ):
                with pytest.raises(RemoteError) as caught:
                    await client.call(method, **params)
                assert caught.value.to_dict()["code"] == code, method
            await client.call("point.abort", **where)
            assert not folder.exists()

    asyncio.run(main())


def test_a_repository_keeps_chains(tmp_path: Path) -> None:
    """Newest, incremental, verify, prune, import and files through the calls that managers and consoles make."""
    contents = disks.versions(bytes(2 << 20), 3, 1)

    async def main() -> None:
        async with serving(tmp_path, repository="points") as (service, client, _, _port):
            assert service.points is not None
            where: dict[str, Any] = {"job": "demo", "vm": "vm1"}
            nothing = await client.call("points.newest", **where, capacity=2 << 20)
            assert nothing["point"] is None and nothing["problem"] is None
            assert 0 < nothing["need"] == nothing["need_incremental"] < nothing["free"]
            made = await asyncio.to_thread(disks.make_chain, service.points, contents)
            answer = await client.call("points.newest", **where, capacity=2 << 20)
            newest = answer["point"]
            assert answer["need"] > answer["need_incremental"] > 0
            assert newest["point"] == disks.point_id(2) and newest["kind"] == "incremental"
            begin = {**where, "point": disks.point_id(5), "kind": "incremental"}
            await client.call("point.begin", **begin, parent=disks.point_id(2), data=1 << 20, capacity=2 << 20)
            for wrong, code in (
                ({"parent": disks.point_id(2)}, "store.locked"),
                ({"parent": "x"}, "store.locked"),
                ({}, "input.invalid"),
                ({"parent": disks.point_id(2), "data": -1}, "rpc.params"),
            ):
                other = {**begin, "point": disks.point_id(6), **wrong}
                with pytest.raises(RemoteError) as caught:
                    await client.call("point.begin", **other)
                assert caught.value.to_dict()["code"] == code or code == "rpc.params"
            with pytest.raises(RemoteError) as caught:
                await client.call("points.prune", **where, count=1)
            assert caught.value.to_dict()["code"] == "store.locked"
            await client.call("point.abort", **where, point=disks.point_id(5))
            assert (await client.call("points.verify"))["intact"]
            found = await client.call("points.verify", point=disks.point_id(1), deep=True)
            assert [p["point"] for p in found["vms"][0]["points"]] == [disks.point_id(0), disks.point_id(1)]
            with pytest.raises(RemoteError):
                await client.call("points.prune", **where)
            done = await client.call("points.prune", **where, count=2)
            assert done == {"merges": [disks.point_id(1)], "removals": [disks.point_id(0)]}
            await client.call("points.synthesize", **where, point=disks.point_id(2))
            await client.call("points.delete", **where, point=disks.point_id(1))
            (left,) = (await client.call("points.list"))["points"]
            assert left["kind"] == "synthetic-full" and left["parent"] is None
            assert disks.content_of(made[2], tmp_path / "out") == contents[2]
            made[2].rename(copy := tmp_path / made[2].name)
            done = await client.call("points.import", folder=str(copy))
            assert len(done["points"]) == 1 and not done["refused"]

    asyncio.run(main())


PROXY_VM = {"vm_uuid": "423F0000-0000-0000-0000-00000000000A"}
ARRAY = {"portals": ["10.0.0.1:3260"], "initiator": "iqn.2026-11.test:p"}


@pytest.mark.parametrize(
    ("fields", "expected", "able"),
    [
        ({}, ["proxy"], ["nbdssl", "nbd"]),
        ({"repository": "points"}, ["repository"], ["nbdssl", "nbd"]),
        ({"repository": "points", "roles": ["proxy", "repository"]}, ["proxy", "repository"], ["nbdssl", "nbd"]),
        ({"proxy": PROXY_VM}, ["proxy"], ["hotadd", "nbdssl", "nbd"]),
        ({"san": ARRAY}, ["proxy"], ["san", "nbdssl", "nbd"]),
        ({"san": ARRAY, "repository": "points"}, ["proxy", "repository"], ["san", "nbdssl", "nbd"]),
    ],
)
def test_roles_and_modes_are_those_of_the_configuration(
    tmp_path: Path, fields: dict[str, Any], expected: list[str], able: list[str]
) -> None:
    config = Machines(tmp_path).config("machine", **fields)
    assert (roles(config), configured(config)) == (expected, able)
