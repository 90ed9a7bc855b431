# SPDX-License-Identifier: MIT
"""A pair of Data Movers end to end: fake host → proxy → repository → restore, in both data directions, and in trouble."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.console.receive import receive_disk
from engine.errors import RemoteError, VadplabError
from engine.store.qcow2.reader import Qcow2Reader
from tests.engine.modes.esxi import host, sample
from tests.engine.mover.small_vcenter import SmallVcenter, serve
from tests.engine.mover.world import Mover, World, link
from tests.engine.store.disks import allocated

SIZE = (6 << 20) + 512 * 3
CONTENT = sample(SIZE)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


@pytest.fixture(scope="module")
def esxi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    image = tmp_path_factory.mktemp("esxi") / "disk.raw"
    image.write_bytes(CONTENT)
    with host(image) as announcement:
        yield announcement


def nfc_ticket(esxi: dict[str, Any]) -> dict[str, object]:
    return {
        "host": esxi["address"],
        "port": esxi["port"],
        "sslThumbprint": esxi["thumbprint_sha1"],
        "service": "vpxa-nfc",
        "serviceVersion": "1.1",
        "sessionId": esxi["tickets"].pop(),
    }


@pytest.fixture
def vcenter(world: World, esxi: dict[str, Any]) -> Iterator[SmallVcenter]:
    with serve(SmallVcenter(lambda: nfc_ticket(esxi)), world.pki.identity("vcenter").certificate) as found:
        yield found


def opening(esxi: dict[str, Any], vcenter: SmallVcenter, mode: str = "nbd") -> dict[str, Any]:
    return {
        "mode": mode,
        "vcenter": {
            "name": "vcenter",
            "address": "127.0.0.1",
            "port": vcenter.port,
            "thumbprint": None,
            "username": "administrator@vsphere.local",
            "password": "secret-in-test",
        },
        "vm": {"name": "vm1", "moref": "vm-1", "uuid": "4211"},
        "snapshot": "snapshot-1",
        "disk": {"key": 2000, "path": esxi["path"], "capacity": SIZE},
        "vmx": esxi["vmx"],
    }


@contextlib.asynccontextmanager
async def pair(world: World, direction: str, **rules: Any) -> AsyncIterator[tuple[Mover, Mover]]:
    async with world.mover("repository-1", "target") as target, world.mover("proxy-1", "source") as source:
        for mover in (source, target):
            await mover.call("rules", **rules)
        await (link(target, source) if direction == "proxy-to-repository" else link(source, target))
        yield source, target


async def restore(world: World, folder: Path, to: Path) -> Any:
    async with world.mover("repository-1", "reader") as mover:
        opened = await mover.call("reader.open", folder=str(folder), disk=2000)
        connection = await world.dialer().dial("127.0.0.1", opened["port"], step="r3", name="repository-1")
        stats = await receive_disk(
            connection, world.pki.identity("console"), opened["token"], opened["size"], to, expect="repository-1"
        )
        assert (await mover.call("reader.wait"))["clusters"] == stats.clusters
        return stats


@pytest.mark.parametrize(
    ("direction", "mode"),
    [("proxy-to-repository", "nbd"), ("repository-to-proxy", "nbd"), ("proxy-to-repository", "nbdssl")],
)
async def test_backup_and_restore(
    world: World, esxi: dict[str, Any], vcenter: SmallVcenter, direction: str, mode: str
) -> None:
    point, folder = world.begin()
    seen: list[dict[str, Any]] = []
    async with pair(world, direction) as (source, target):
        opened = await source.call("source.open", **opening(esxi, vcenter, mode))
        assert opened["capacity"] == SIZE and 'displayName = "vm1"' in opened["vmx"] and opened["mode"] == mode
        await target.call("target.open", folder=str(folder), file="disk-2000.qcow2", size=SIZE)
        read = await source.client.call("source.read", deadline=60, on_progress=seen.append)
        stored = await target.call("target.commit", root=read["root"])
    assert read["total"] == read["read"] == read["zero"] + read["data"] == SIZE
    assert 0 < read["sent"] < SIZE
    assert world.points.list() == []
    final = world.commit(point, stored, vmx=opened["vmx"])
    assert [found.folder for found in world.points.list()] == [final]

    await asyncio.to_thread(qemu_agrees, final / "disk-2000.qcow2", world.folder / "raw")

    stats = await restore(world, final, world.folder / "restored")
    assert (world.folder / "restored").read_bytes() == CONTENT
    assert stats.size == SIZE and stats.written < SIZE

    assert vcenter.calls == [
        "ServiceInstance.RetrieveServiceContent",
        "sm.Login",
        "nfcService.NfcGetVmFiles",
        "sm.Logout",
    ]
    check_events(world, direction)


def qemu_agrees(disk: Path, raw: Path) -> None:
    raw.write_bytes(CONTENT)
    subprocess.run(["qemu-img", "check", "-q", disk], check=True)
    subprocess.run(["qemu-img", "compare", "-q", "-F", "raw", disk, raw], check=True)


def check_events(world: World, direction: str) -> None:
    proxy, repository = world.events("proxy-1"), world.events("repository-1")
    attempts = [(e["step"], e["target"]) for e in proxy if e["kind"] == "attempt"]
    back = [(e["step"], e["target"]) for e in repository if e["kind"] == "attempt"]
    if direction == "proxy-to-repository":
        assert (attempts, back) == ([("7", "repository-1"), ("18", "vcenter"), ("19", "esxi-1")], [])
    else:
        assert (attempts, back) == ([("18", "vcenter"), ("19", "esxi-1")], [("7", "proxy-1")])
    by_step = {e["step"]: e["attempt"] for e in proxy + repository if e["kind"] == "attempt"}
    uses = {e["step"]: e["attempt"] for e in proxy if e["kind"] == "use"}
    assert uses == {"20c": by_step["19"], "21": by_step["7"]}
    ended = [e["step"] for e in proxy if e["kind"] == "step" and e["phase"] == "end"]
    assert [step for step in ended if step != "7"] == ["18", "19", "20c", "21"]
    totals = {e["attempt"]: e for e in proxy + repository if e["kind"] == "bytes"}
    assert totals[by_step["19"]]["received"] > SIZE
    assert totals[by_step["7"]]["sent" if direction == "proxy-to-repository" else "received"] > 0
    assert "secret-in-test" not in str(proxy + repository)


async def test_throttle_is_obeyed(world: World, esxi: dict[str, Any], vcenter: SmallVcenter) -> None:
    async def run(rate: int | None) -> tuple[float, int]:
        _, folder = world.begin()
        async with pair(world, "proxy-to-repository", throttle=rate) as (source, target):
            await source.call("source.open", **opening(esxi, vcenter))
            await target.call("target.open", folder=str(folder), file="disk-2000.qcow2", size=SIZE)
            start = time.monotonic()
            read = await source.call("source.read")
            return time.monotonic() - start, read["sent"]

    free, sent = await run(None)
    slow, _ = await run(sent // 3)
    assert slow > 2.4, "three seconds' worth of data, less the burst"
    assert slow > free


@pytest.mark.parametrize("direction", ["proxy-to-repository", "repository-to-proxy"])
@pytest.mark.parametrize("victim", ["source", "target"])
async def test_killed_peer(
    world: World, esxi: dict[str, Any], vcenter: SmallVcenter, direction: str, victim: str
) -> None:
    point, folder = world.begin()
    async with pair(world, direction, throttle=1 << 20) as (source, target):
        await source.call("source.open", **opening(esxi, vcenter))
        await target.call("target.open", folder=str(folder), file="disk-2000.qcow2", size=SIZE)
        reading = asyncio.create_task(source.call("source.read"))
        await asyncio.sleep(0.7)  # in the middle of a transfer that takes seconds
        assert not reading.done()
        (source if victim == "source" else target).process.kill()
        with pytest.raises(VadplabError) as caught:
            await (reading if victim == "target" else target.call("target.commit"))
        assert caught.value.to_dict()["code"] == "data.cut"
        assert caught.value.to_dict()["step"] == "21"
        if victim == "source":
            with pytest.raises(VadplabError):
                await reading
    assert world.points.list() == []
    world.points.abort("demo", "vm1", point)
    assert not folder.exists()


async def test_mover_ends_with_its_control_connection(
    world: World, esxi: dict[str, Any], vcenter: SmallVcenter
) -> None:
    _, folder = world.begin()
    async with pair(world, "proxy-to-repository", throttle=1 << 20) as (source, target):
        await source.call("source.open", **opening(esxi, vcenter))
        await target.call("target.open", folder=str(folder), file="disk-2000.qcow2", size=SIZE)
        reading = asyncio.create_task(source.call("source.read"))
        await asyncio.sleep(0.3)
        await source.client.close()
        assert await asyncio.wait_for(source.process.wait(), 8) == 0
        with pytest.raises(VadplabError):
            await reading
        with pytest.raises(RemoteError) as caught:
            await target.call("target.commit")
        assert caught.value.to_dict()["code"] == "data.cut"


async def test_mover_ends_on_sigterm(world: World, esxi: dict[str, Any], vcenter: SmallVcenter) -> None:
    _, folder = world.begin()
    async with pair(world, "repository-to-proxy", throttle=1 << 20) as (source, target):
        await source.call("source.open", **opening(esxi, vcenter))
        await target.call("target.open", folder=str(folder), file="disk-2000.qcow2", size=SIZE)
        reading = asyncio.create_task(source.call("source.read"))
        await asyncio.sleep(0.3)
        for mover in (source, target):
            mover.process.terminate()
            assert await asyncio.wait_for(mover.process.wait(), 15) == 0
        with pytest.raises(VadplabError):
            await reading
    assert list(folder.iterdir()) == [], "what was received is removed"


async def test_wrong_tokens(world: World) -> None:
    async with world.mover("repository-1", "target") as target, world.mover("proxy-1", "source") as source:
        listening = await target.call("data.listen")
        with pytest.raises(RemoteError) as caught:
            await source.call(
                "data.connect", host="127.0.0.1", port=listening["port"], token="wrong", name="repository-1"
            )
        assert caught.value.to_dict()["code"] == "data.token"
        # the listener still waits for the right one
        await source.call(
            "data.connect", host="127.0.0.1", port=listening["port"], token=listening["token"], name="repository-1"
        )
        other = await world.control("proxy-1", source.ready["port"])
        try:
            for method, params in (("hello", {"token": source.ready["token"]}), ("rules", {})):
                with pytest.raises(RemoteError) as caught:
                    await other.call(method, **params)
                assert caught.value.to_dict()["code"] == "data.token"
        finally:
            await other.close()


async def test_wrong_machine(world: World) -> None:
    async with world.mover("repository-1", "target") as target, world.mover("proxy-1", "source") as source:
        listening = await target.call("data.listen")
        with pytest.raises(RemoteError) as caught:
            await source.call(
                "data.connect", host="127.0.0.1", port=listening["port"], token=listening["token"], name="repository-9"
            )
        assert caught.value.to_dict()["code"] == "tls.wrong-peer"


async def test_bad_calls(world: World, tmp_path: Path) -> None:
    async with world.mover("repository-1", "target") as target:
        for method, params, code in (
            ("nonsense", {}, "wire.method"),
            ("rules", {"throttle": -1}, "wire.params"),
            ("target.open", {"folder": "/", "file": "disk-1.qcow2", "size": 512}, "input.invalid"),
            ("target.commit", {}, "mover.order"),
            ("source.read", {}, "mover.order"),
            ("source.open", {}, "wire.params"),
            ("reader.open", {"folder": str(tmp_path), "disk": 1}, "mover.order"),
        ):
            with pytest.raises(RemoteError) as caught:
                await target.call(method, **params)
            assert caught.value.to_dict()["code"] == code, method


async def test_no_ticket_means_no_902(world: World, esxi: dict[str, Any], vcenter: SmallVcenter) -> None:
    vcenter.refuse = "NoPermission"
    async with pair(world, "proxy-to-repository") as (source, _):
        with pytest.raises(RemoteError) as caught:
            await source.call("source.open", **opening(esxi, vcenter))
    fields = caught.value.to_dict()
    assert (fields["code"], fields["step"], fields["target"]) == ("nfc.no-ticket", "18", "vcenter")
    steps = [e["step"] for e in world.events("proxy-1") if e["kind"] == "attempt"]
    assert "18" in steps and "19" not in steps


async def test_host_refuses_at_19(world: World, esxi: dict[str, Any], vcenter: SmallVcenter) -> None:
    vcenter.ticket = lambda: {**nfc_ticket(esxi), "sessionId": "00000000"}
    async with pair(world, "proxy-to-repository") as (source, _):
        with pytest.raises(RemoteError) as caught:
            await source.call("source.open", **opening(esxi, vcenter))
    fields = caught.value.to_dict()
    assert (fields["code"], fields["step"], fields["host"], fields["target"]) == (
        "nfc.ticket",
        "19",
        "proxy-1",
        "esxi-1",
    )
    failed = [e["step"] for e in world.events("proxy-1") if e["kind"] == "step" and e["phase"] == "failed"]
    assert failed == ["19"]


async def test_unsupported_mode(world: World, esxi: dict[str, Any], vcenter: SmallVcenter) -> None:
    async with pair(world, "proxy-to-repository") as (source, _):
        with pytest.raises(RemoteError) as caught:
            await source.call("source.open", **opening(esxi, vcenter, "tape"))
    assert caught.value.to_dict()["code"] == "mode.unsupported"
    assert vcenter.calls == []


async def test_restore_refuses_a_flipped_bit(world: World, esxi: dict[str, Any], vcenter: SmallVcenter) -> None:
    point, folder = world.begin()
    async with pair(world, "proxy-to-repository") as (source, target):
        await source.call("source.open", **opening(esxi, vcenter))
        await target.call("target.open", folder=str(folder), file="disk-2000.qcow2", size=SIZE)
        await source.call("source.read")
        stored = await target.call("target.commit")
    final = world.commit(point, stored)
    disk = final / "disk-2000.qcow2"
    with Qcow2Reader(disk) as reader:
        victim = allocated(reader)[20]
        found = reader.find(victim)
    assert found is not None
    data = bytearray(disk.read_bytes())
    data[found[1].offset + 40] ^= 4
    disk.write_bytes(data)
    to = world.folder / "restored"
    with pytest.raises(
        RemoteError,
        match=f"{point}, disk-2000.qcow2: refused at offset {victim * 65536}: .* at offset {victim * 65536}",
    ) as caught:
        await restore(world, final, to)
    assert caught.value.to_dict()["code"] == "store.damaged"
    assert "are intact" in caught.value.message
    assert not to.exists() and not to.with_name("restored.part").exists()


async def test_restore_to_a_console_with_a_wrong_token(
    world: World, esxi: dict[str, Any], vcenter: SmallVcenter
) -> None:
    point, folder = world.begin()
    async with pair(world, "proxy-to-repository") as (source, target):
        await source.call("source.open", **opening(esxi, vcenter))
        await target.call("target.open", folder=str(folder), file="disk-2000.qcow2", size=SIZE)
        await source.call("source.read")
        stored = await target.call("target.commit")
    final = world.commit(point, stored)
    async with world.mover("repository-1", "reader") as mover:
        opened = await mover.call("reader.open", folder=str(final), disk=2000)
        connection = await world.dialer().dial("127.0.0.1", opened["port"], step="r3", name="repository-1")
        with pytest.raises(RemoteError) as caught:
            await receive_disk(
                connection, world.manager, "wrong", SIZE, world.folder / "restored", expect="repository-1"
            )
        assert caught.value.to_dict()["code"] == "data.token"
    assert not (world.folder / "restored").exists()
