# SPDX-License-Identifier: MIT
"""Every transport mode end to end: a whole fake site, Data Movers, a restore point and its incrementals, and restores into a VM."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import RemoteError, VadplabError
from engine.store.point_disk import PointDisk
from engine.store.restore import to_file
from tests.engine.modes.site import SIZE, Frozen, Site, snapshot
from tests.engine.mover.world import Mover, World, link
from tests.engine.pki import Pki

pytestmark = pytest.mark.root
CLUSTER = 65536


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "pki").mkdir()
    site = Site.start(folder, Pki(folder / "pki"))
    try:
        rng = random.Random(3)
        site.guest_writes({at: rng.randbytes(200_000) for at in (0, 1 << 20, (5 << 20) + 512)})
        yield site
    finally:
        site.stop()


@pytest.fixture
def world(tmp_path: Path, site: Site) -> World:
    world = World.make(tmp_path)
    world.settings["proxy-1"] = site.proxy_settings()
    return world


def opening(site: Site, frozen: Frozen, *modes: str, **more: Any) -> dict[str, Any]:
    return {
        "modes": list(modes),
        "vcenter": site.login,
        "vm": frozen.vm,
        "snapshot": frozen.moref,
        "disk": {"key": frozen.disk.key, "path": frozen.disk.path, "capacity": frozen.disk.capacity},
        "vmx": frozen.vmx,
        **more,
    }


@contextlib.asynccontextmanager
async def pair(world: World, **rules: Any) -> AsyncIterator[tuple[Mover, Mover]]:
    async with world.mover("repository-1", "target") as target, world.mover("proxy-1", "source") as source:
        for mover in (source, target):
            await mover.call("rules", **rules)
        await link(target, source)
        yield source, target


async def backup(
    world: World, opened: dict[str, Any], parent: Path | None = None, **read: Any
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """One restore point; its folder, what `source.open` and what `source.read` gave."""
    point, folder = world.begin(parent=parent.name if parent else None)
    async with pair(world) as (source, target):
        result = await source.call("source.open", **opened)
        below = {"folder": str(parent), "disk": 2000} if parent else None
        await target.call("target.open", folder=str(folder), file="disk-2000.qcow2", size=SIZE, parent=below)
        counts = await source.call("source.read", **read)
        stored = await target.call("target.commit", root=counts["root"])
    final = world.commit(point, stored, vmx=result["vmx"], parent=parent.name if parent else None)
    return final, result, counts


def restored(folder: Path, to: Path) -> bytes:
    with PointDisk(folder, 2000) as disk:
        to_file(disk, to)
    return to.read_bytes()


def remove(site: Site, frozen: Frozen) -> None:
    with site.vsphere() as vsphere:
        vsphere.remove_snapshot(frozen.moref, step="22", timeout=30)


CASES = {
    "nbd": {"modes": ["nbd"]},
    "nbdssl": {"modes": ["nbdssl"]},
    "zlib": {"modes": ["nbd"], "packing": "zlib"},
    "hotadd": {"modes": ["hotadd"]},
    "san": {"modes": ["san"]},
    "auto": {"modes": ["auto"]},
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in ("nbdssl", "zlib", "auto"))) for case in CASES]
)
async def test_full_and_incrementals(world: World, site: Site, case: str) -> None:
    rng = random.Random(case)
    how = CASES[case]
    first = await asyncio.to_thread(snapshot, site, "full")
    full, opened, counts = await backup(world, {**opening(site, first), **how})
    expected = {"zlib": "nbd", "auto": "san"}.get(case, case)
    assert opened["mode"] == expected and opened["failed_over"] == []
    assert 'displayName = "web"' in opened["vmx"]
    assert restored(full, world.folder / "full") == first.content

    changes = {(2 << 20) + 3 * CLUSTER: rng.randbytes(CLUSTER), 512: rng.randbytes(512), 1 << 20: bytes(2 * CLUSTER)}
    await asyncio.to_thread(site.guest_writes, changes)
    second = await asyncio.to_thread(snapshot, site, "changed")
    assert second.content != first.content
    ranges = [[0, CLUSTER], [1 << 20, 2 * CLUSTER], [(2 << 20) + 3 * CLUSTER, CLUSTER]]
    one, _, counts = await backup(world, {**opening(site, second), **how}, full, ranges=ranges, incremental=True)
    assert counts["read"] == 4 * CLUSTER and counts["data"] == 2 * CLUSTER, "only what changed is read; zeros are zeros"
    assert restored(one, world.folder / "one") == second.content

    await asyncio.to_thread(site.guest_writes, {3 << 20: rng.randbytes(5000), 5 << 20: bytes(CLUSTER)})
    third = await asyncio.to_thread(snapshot, site, "compared")
    two, _, counts = await backup(world, {**opening(site, third), **how}, one, compare=True)
    changed = sum(
        second.content[at : at + CLUSTER] != third.content[at : at + CLUSTER] for at in range(0, SIZE, CLUSTER)
    )
    assert counts["read"] == SIZE and counts["same"] == SIZE - changed * CLUSTER
    assert restored(two, world.folder / "two") == third.content
    assert restored(one, world.folder / "again") == second.content

    assert await asyncio.to_thread(site.attached) == []
    assert not list(site.devices.glob("wwn-*"))
    check_wires(world, expected)
    for frozen in (third, second, first):
        await asyncio.to_thread(remove, site, frozen)
    await asyncio.to_thread(site.guest_writes, {1 << 20: rng.randbytes(200_000)})


def check_wires(world: World, mode: str) -> None:
    """Bulk goes where the mode says; 902 carries kilobytes otherwise (invariant I5, by the engine's own events)."""
    events = world.events("proxy-1")
    opened = {e["attempt"]: e["step"] for e in events if e["kind"] == "attempt"}
    received: dict[str, int] = {}
    for event in events:
        if event["kind"] == "bytes":
            step = opened[event["attempt"]]
            received[step] = received.get(step, 0) + event["received"]
    if mode in ("san", "hotadd"):
        assert received["19"] < 64 << 10
    else:
        assert received["19"] > 200_000
    assert (received.get("20a", 0) > 600_000) is (mode == "san")
    assert {e["step"] for e in events if e["kind"] == "step"} >= {"18", "19", "21"}
    used = {e["step"] for e in events if e["kind"] == "use"}
    assert ("20b" in used) is (mode == "hotadd")
    assert "VMware1!" not in str(events) and "a-secret" not in str(events)


async def test_a_failover_is_visible(world: World, site: Site, tmp_path: Path) -> None:
    frozen = await asyncio.to_thread(snapshot, site, "failover")
    portals = {"portals": ["127.0.0.1:1"], "initiator": "iqn.2026-01.lab:x"}
    world.settings["proxy-1"] = site.proxy_settings(san=portals)
    final, opened, _ = await backup(world, opening(site, frozen, "auto"))
    assert opened["mode"] == "hotadd"
    assert [(f["mode"], f["code"]) for f in opened["failed_over"]] == [("san", "connect.refused")]
    assert restored(final, tmp_path / "a") == frozen.content

    proxy = {"vm_uuid": "42110000-0000-0000-0000-000000000000", "devices": str(site.devices)}
    world.settings["proxy-1"] = site.proxy_settings(san=portals, proxy=proxy)
    final, opened, _ = await backup(world, opening(site, frozen, "auto"))
    assert opened["mode"] == "nbdssl"
    assert [f["code"] for f in opened["failed_over"]] == ["connect.refused", "hotadd.no-proxy-vm"]
    assert restored(final, tmp_path / "b") == frozen.content
    notes = [e["text"] for e in world.events("proxy-1") if e["kind"] == "note"]
    assert any(text.startswith("failover from san to hotadd: ") for text in notes)

    async with pair(world) as (source, _):
        with pytest.raises(RemoteError) as caught:
            await source.call("source.open", **opening(site, frozen, "san", "nbd", failover=False))
    fields = caught.value.to_dict()
    assert (fields["code"], fields["step"], fields["port"]) == ("connect.refused", "20a", 1)
    await asyncio.to_thread(remove, site, frozen)


async def test_a_proxy_without_a_mode_says_so_before_it_connects(world: World, site: Site) -> None:
    frozen = Frozen(
        "snapshot-1", {"name": "web", "moref": "vm-1"}, await asyncio.to_thread(_disk, site), "[a] b/b.vmx", b""
    )
    world.settings["proxy-1"] = {}
    for mode in ("san", "hotadd"):
        async with world.mover("proxy-1", "source") as source:
            with pytest.raises(RemoteError) as caught:
                await source.call("source.open", **opening(site, frozen, mode))
            assert caught.value.to_dict()["code"] == "mode.not-configured"
    assert [e for e in world.events("proxy-1") if e["kind"] == "attempt" and e["step"] == "18"] == []


def _disk(site: Site) -> Any:
    with site.vsphere() as vsphere:
        return vsphere.find_vm("web", step="8").disks[0]


async def test_killed_mover_leaves_a_disk_that_the_next_run_detaches(world: World, site: Site) -> None:
    frozen = await asyncio.to_thread(snapshot, site, "killed")
    async with pair(world) as (source, _):
        await source.call("source.open", **opening(site, frozen, "hotadd"))
        assert await asyncio.to_thread(site.attached) == [frozen.disk.path.partition("] ")[2]]
        async with world.mover("proxy-1", "source") as other:
            with pytest.raises(RemoteError) as caught:
                await other.call("source.open", **opening(site, frozen, "hotadd"))
            assert caught.value.to_dict()["code"] == "hotadd.busy", "what a running task holds is left alone"
        source.process.kill()
        await source.process.wait()
    assert len(await asyncio.to_thread(site.attached)) == 1
    final, opened, _ = await backup(world, opening(site, frozen, "hotadd"))
    assert opened["mode"] == "hotadd" and restored(final, world.folder / "raw") == frozen.content
    assert await asyncio.to_thread(site.attached) == []
    assert any("left attached" in e["text"] for e in world.events("proxy-1") if e["kind"] == "note")
    await asyncio.to_thread(remove, site, frozen)


async def test_a_cancelled_hotadd_task_detaches(world: World, site: Site) -> None:
    frozen = await asyncio.to_thread(snapshot, site, "cancelled")
    async with pair(world) as (source, _):
        await source.call("source.open", **opening(site, frozen, "hotadd"))
        await source.client.close()
        assert await asyncio.wait_for(source.process.wait(), 25) == 0
    assert await asyncio.to_thread(site.attached) == []
    await asyncio.to_thread(remove, site, frozen)


async def test_the_san_goes_away_while_it_is_read(world: World, site: Site) -> None:
    rng = random.Random(9)
    await asyncio.to_thread(site.guest_writes, {at: rng.randbytes(1 << 20) for at in range(0, SIZE, 1 << 20)})
    frozen = await asyncio.to_thread(snapshot, site, "san-gone")
    point, folder = world.begin()
    async with pair(world, throttle=500_000) as (source, target):
        await source.call("source.open", **opening(site, frozen, "san"))
        await target.call("target.open", folder=str(folder), file="disk-2000.qcow2", size=SIZE)
        reading = asyncio.create_task(source.call("source.read"))
        await asyncio.sleep(1.0)
        assert not reading.done()
        await asyncio.to_thread(site.array, "lun.offline", on=True)
        try:
            with pytest.raises(RemoteError) as caught:
                await reading
        finally:
            await asyncio.to_thread(site.array, "lun.offline", on=False)
        assert caught.value.to_dict()["code"] in ("san.read", "san.cut")
        assert caught.value.to_dict()["step"] == "20a"
        with pytest.raises(VadplabError):
            await target.call("target.commit")
    world.points.abort("demo", "vm1", point)
    await asyncio.to_thread(remove, site, frozen)


@pytest.mark.parametrize("mode", ["nbd", "nbdssl", "hotadd"])
async def test_restore_into_a_vm(world: World, site: Site, mode: str) -> None:
    frozen = await asyncio.to_thread(snapshot, site, "restore")
    point, _, _ = await backup(world, opening(site, frozen, "nbd"))
    with site.vsphere() as vsphere:
        vm = vsphere.find_vm("restored", step="8")
    disk = vm.disks[0]
    seen: list[dict[str, Any]] = []
    async with world.mover("repository-1", "reader") as sender, world.mover("proxy-1", "writer") as writer:
        opened = await sender.call("reader.open", folder=str(point), disk=2000)
        await writer.call(
            "data.connect", host="127.0.0.1", port=opened["port"], token=opened["token"], name="repository-1", step="v2"
        )
        found = await writer.call(
            "writer.open",
            modes=[mode],
            vcenter=site.login,
            vm={"name": "restored", "moref": vm.moref},
            disk={"key": disk.key, "path": disk.path, "capacity": disk.capacity},
        )
        assert (found["mode"], found["capacity"]) == (mode, SIZE)
        written = await writer.client.call("writer.write", deadline=60, on_progress=seen.append)
        assert (await sender.call("reader.wait"))["clusters"] == written["clusters"]
    assert await asyncio.to_thread(site.content, "restored/restored.vmdk") == frozen.content
    assert await asyncio.to_thread(site.attached) == []
    await asyncio.to_thread(remove, site, frozen)
