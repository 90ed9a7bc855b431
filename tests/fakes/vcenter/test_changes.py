# SPDX-License-Identifier: MIT
"""Changed block tracking as a third party uses it, over the real storage: IDs, pages, faults, reset, vcsim's death."""

from __future__ import annotations

import os
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim, vmodl

from fakes.vcenter.changes import Pages
from tests.fakes.vcenter.real import GRAIN, MIB, SIZE, RealSite, disks, done, drop, reconfigure, take
from tests.fakes.vcenter.real import real as real

CHANGE_ID = re.compile(r"([0-9a-f]{2} ){7}[0-9a-f]{2}-([0-9a-f]{2} ){7}[0-9a-f]{2}/\d+")


def change_ids(config: Any) -> list[str | None]:
    """Of all disks, by key."""
    return [disk.backing.changeId for disk in disks(config)]


def areas(vm: Any, snapshot: Any, key: int, since: str, size: int = SIZE) -> list[tuple[int, int]]:
    """The loop of every backup client: page after page until the disk is covered."""
    found, offset = [], 0
    while offset < size:
        page = vm.QueryChangedDiskAreas(snapshot=snapshot, deviceKey=key, startOffset=offset, changeId=since)
        assert page.startOffset == offset and page.length > 0
        for area in page.changedArea:
            assert offset <= area.start and area.start + area.length <= offset + page.length
            found.append((area.start, area.length))
        offset += page.length
    assert offset == size
    return found


def covered(found: list[tuple[int, int]]) -> set[int]:
    """Grains."""
    return {grain for at, length in found for grain in range(at // GRAIN, (at + length - 1) // GRAIN + 1)}


def different(old: bytes, new: bytes) -> set[int]:
    """Grains whose bytes differ."""
    old = old.ljust(len(new), b"\0")
    return {at // GRAIN for at in range(0, len(new), GRAIN) if old[at : at + GRAIN] != new[at : at + GRAIN]}


def enable(vm: Any, *, on: bool = True) -> None:
    """Asks for tracking and goes through a snapshot cycle, in which it takes effect."""
    reconfigure(vm, changeTrackingEnabled=on)
    drop(take(vm, "cycle"))


def fault_keys(fault: Any) -> list[str]:
    """Keys of the messages of a fault."""
    return [message.key for message in fault.faultMessage]


def test_it_takes_effect_at_a_snapshot_cycle(real: RealSite) -> None:
    vm = real.vm("web")
    assert vm.config.changeTrackingEnabled is False
    reconfigure(vm, changeTrackingEnabled=True)
    assert vm.config.changeTrackingEnabled is True
    assert {o.key: o.value for o in vm.config.extraConfig}["ctkEnabled"] == "TRUE"
    assert change_ids(vm.config) == [None, None]  # not yet
    with pytest.raises(vim.fault.FileFault) as refused:
        vm.QueryChangedDiskAreas(deviceKey=2000, startOffset=0, changeId="*")
    assert fault_keys(refused.value) == ["vim.hostd.vmsvc.cbt.noTrack"]
    snapshot = take(vm)
    ids = change_ids(snapshot.config)
    assert all(CHANGE_ID.fullmatch(str(each)) for each in ids) and len(set(ids)) == 2
    real.write("web", 2000, MIB, b"x" * GRAIN)
    drop(snapshot)
    second = take(vm, "second")
    assert change_ids(second.config)[0].split("/")[0] == ids[0].split("/")[0]  # type: ignore[union-attr]
    assert int(change_ids(second.config)[0].split("/")[1]) > int(ids[0].split("/")[1])  # type: ignore[union-attr]
    assert areas(vm, second, 2000, str(ids[0])) == [(MIB, GRAIN)]
    assert areas(vm, second, 2001, str(ids[1]), 2 * MIB) == []
    assert {o.key: o.value for o in vm.config.extraConfig}["ctkEnabled"] == "TRUE"


def test_it_takes_effect_at_power_on(real: RealSite) -> None:
    vm = real.vm("web")
    reconfigure(vm, changeTrackingEnabled=True)
    done(vm.PowerOnVM_Task())
    assert all(CHANGE_ID.fullmatch(str(each)) for each in change_ids(vm.config))
    first = change_ids(vm.config)[0]
    real.write("web", 2000, 0, b"y")
    with pytest.raises(vim.fault.FileLocked):  # a running VM has no state to compare with
        vm.QueryChangedDiskAreas(deviceKey=2000, startOffset=0, changeId=str(first))
    assert areas(vm, take(vm), 2000, str(first)) == [(0, GRAIN)]


def test_a_powered_off_vm_needs_no_snapshot(real: RealSite) -> None:
    vm = real.vm("web")
    enable(vm)
    first = str(change_ids(vm.config)[0])
    real.write("web", 2000, 2 * MIB, b"z" * (GRAIN + 1))
    assert areas(vm, None, 2000, first) == [(2 * MIB, 2 * GRAIN)]
    assert areas(vm, None, 2000, "*") == [(2 * MIB, 2 * GRAIN)]


def test_reset_gives_new_ids_and_old_ones_are_refused(real: RealSite) -> None:
    vm = real.vm("web")
    enable(vm)
    snapshot = take(vm)
    old = str(change_ids(snapshot.config)[0])
    drop(snapshot)
    enable(vm, on=False)
    assert vm.config.changeTrackingEnabled is False
    snapshot = take(vm)
    assert change_ids(snapshot.config) == [None, None]
    with pytest.raises(vim.fault.FileFault) as refused:
        areas(vm, snapshot, 2000, old)
    assert fault_keys(refused.value) == ["vim.hostd.vmsvc.cbt.noTrack"]
    drop(snapshot)
    enable(vm)
    snapshot = take(vm)
    new = str(change_ids(snapshot.config)[0])
    assert new.split("/")[0] != old.split("/")[0]
    with pytest.raises(vim.fault.FileFault) as refused:
        areas(vm, snapshot, 2000, old)
    assert fault_keys(refused.value) == ["vim.hostd.vmsvc.cbt.cannotGetChanges"]
    assert areas(vm, snapshot, 2000, new) == []


def test_a_snapshot_from_before_tracking_has_no_epoch(real: RealSite) -> None:
    vm = real.vm("web")
    before = take(vm, "before")
    reconfigure(vm, changeTrackingEnabled=True)
    after = take(vm, "after")
    for since in ("*", str(change_ids(after.config)[0])):
        with pytest.raises(vim.fault.FileFault) as refused:
            areas(vm, before, 2000, since)
        assert fault_keys(refused.value) == ["vim.hostd.vmsvc.cbt.noEpoch"]
        assert refused.value.file == "[datastore1] web/web.vmdk"
    later = str(change_ids(after.config)[0]).split("/")[0] + "/4000000000"
    with pytest.raises(vim.fault.FileFault) as refused:
        areas(vm, after, 2000, later)
    assert fault_keys(refused.value) == ["vim.hostd.vmsvc.cbt.cannotGetChanges"]


def test_bad_arguments(real: RealSite) -> None:
    vm, other = real.vm("web"), real.vm("proxy-2")
    enable(vm)
    snapshot, foreign = take(vm), take(other)
    good = str(change_ids(snapshot.config)[0])
    cases: list[tuple[str, dict[str, Any]]] = [
        ("startOffset", {"startOffset": SIZE}),
        ("startOffset", {"startOffset": -1}),
        ("changeId", {"changeId": ""}),
        ("changeId", {"changeId": "52 de/1"}),
        ("changeId", {"changeId": good + "x"}),
        ("deviceKey", {"deviceKey": 2009}),
        ("deviceKey", {"deviceKey": 1000}),
        ("snapshot", {"snapshot": foreign}),
    ]
    for name, wrong in cases:
        with pytest.raises(vmodl.fault.InvalidArgument) as refused:
            vm.QueryChangedDiskAreas(
                **{"snapshot": snapshot, "deviceKey": 2000, "startOffset": 0, "changeId": good, **wrong}
            )
        assert refused.value.invalidProperty == name
    drop(snapshot)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vm.QueryChangedDiskAreas(snapshot=snapshot, deviceKey=2000, startOffset=0, changeId=good)
    stub = type(real.session._stub)(
        host="127.0.0.1", port=real.site.port, version="vim.version.v8_0_3_0", sslContext=real.site.trust
    )
    with pytest.raises(vim.fault.NotAuthenticated):
        vim.VirtualMachine(vm._moId, stub).QueryChangedDiskAreas(deviceKey=2000, startOffset=0, changeId="*")


def test_vcsim_dies_between_enabling_snapshot_and_query(real: RealSite) -> None:
    reconfigure(real.vm("web"), changeTrackingEnabled=True)
    real.again()
    vm = real.vm("web")
    assert vm.config.changeTrackingEnabled is True
    drop(take(vm, "cycle"))
    base = take(vm, "base")
    old = change_ids(base.config)
    real.again()
    vm = real.vm("web")
    node = vm.snapshot.rootSnapshotList[0]
    assert node.description == "mark base"
    assert change_ids(node.snapshot.config) == old
    real.write("web", 2000, 3 * MIB, b"q")
    drop(node.snapshot)
    take(vm, "next")
    real.again()
    vm = real.vm("web")
    assert areas(vm, vm.snapshot.currentSnapshot, 2000, str(old[0])) == [(3 * MIB, GRAIN)]
    # an ID of a live disk survives as well
    live = change_ids(vm.config)
    real.again()
    assert change_ids(real.vm("web").config) == live


def test_a_disk_that_grew(real: RealSite) -> None:
    vm = real.vm("web")
    enable(vm)
    first = str(change_ids(vm.config)[0])
    disk = disks(vm.config)[0]
    disk.capacityInKB, disk.capacityInBytes = 2 * SIZE >> 10, 2 * SIZE
    spec = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
    snapshot = take(vm)
    with pytest.raises(vim.fault.InvalidDeviceOperation):
        reconfigure(vm, deviceChange=[spec])
    drop(snapshot)
    reconfigure(vm, deviceChange=[spec])
    assert disks(vm.config)[0].capacityInBytes == 2 * SIZE
    assert [d["size"] for d in real.call("vm.get", vm="web")["disks"]] == [2 * SIZE, 2 * MIB]
    assert covered(areas(vm, None, 2000, first, 2 * SIZE)) >= set(range(SIZE // GRAIN, 2 * SIZE // GRAIN))
    disk.capacityInKB, disk.capacityInBytes = SIZE >> 10, SIZE
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        reconfigure(vm, deviceChange=[spec])
    manager = real.session.RetrieveContent().virtualDiskManager
    name = "[datastore1] web/web_1.vmdk"
    done(manager.ExtendVirtualDisk_Task(name=name, newCapacityKb=3 << 10, eagerZero=False))
    assert disks(vm.config)[1].capacityInBytes == 3 * MIB
    real.again()
    assert [d.capacityInBytes for d in disks(real.vm("web").config)] == [2 * SIZE, 3 * MIB]
    with pytest.raises(vim.fault.FileNotFound):
        manager = real.session.RetrieveContent().virtualDiskManager
        manager.ExtendVirtualDisk_Task(name="[datastore1] web/none.vmdk", newCapacityKb=1, eagerZero=False)


def test_the_journal_tells(real: RealSite) -> None:
    vm = real.vm("web")
    enable(vm)
    real.write("web", 2000, 0, b"1")
    snapshot = take(vm)
    areas(vm, snapshot, 2000, "*")
    entries = [e for e in real.journal() if e["method"] in ("QueryChangedDiskAreas", "ReconfigVM_Task")]
    assert [e["detail"].get("state") for e in entries] == ["queued", "success", None]
    assert entries[0]["detail"]["change_tracking"] is True
    wanted = {"vm": "web", "snapshot": snapshot._moId, "disk": 2000, "start": 0, "change_id": "*"}
    assert entries[2]["detail"] == {**wanted, "length": SIZE, "areas": 1, "bytes": GRAIN}


@given(
    found=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12),
    span=st.one_of(st.none(), st.integers(1, 70)),
    most=st.integers(1, 4),
    size=st.integers(1, 64),
)
def test_pages_cover_the_disk_once(found: list[tuple[int, int]], span: int | None, most: int, size: int) -> None:
    units = sorted({unit for at, length in found for unit in range(at, min(at + length, size)) if unit < size})
    merged: list[tuple[int, int]] = []
    for unit in units:
        if merged and sum(merged[-1]) == unit:
            merged[-1] = (merged[-1][0], merged[-1][1] + 1)
        else:
            merged.append((unit, 1))
    pages, start, seen = Pages(span, most), 0, list[int]()
    while start < size:
        length, inside = pages.cut(merged, start, size)
        assert 0 < length <= (span or size) and len(inside) <= most
        for at, many in inside:
            assert start <= at and at + many <= start + length
            seen += range(at, at + many)
        start += length
    assert start == size
    assert seen == units


@pytest.mark.parametrize(("seed", "pages"), [(1, Pages()), (2, Pages(3 * GRAIN, 2000)), (3, Pages(SIZE // 3 + 512, 1))])
def test_never_a_false_negative(real: RealSite, seed: int, pages: Pages) -> None:
    """Random writes, discards, cycles, resets, reverts and growth; every answer is held against the bytes."""
    dice = random.Random(seed)
    real.site.gateway._handlers["QueryChangedDiskAreas"].__self__._pages = pages  # type: ignore[attr-defined]
    vm = real.vm("web")
    enable(vm)
    size = SIZE
    known: dict[str, bytes] = {}  # change ID → what the disk held then
    compared = found_some = 0

    def frozen(snapshot: Any) -> tuple[str, bytes]:
        backing = disks(snapshot.config)[0].backing
        held = real.read("file/" + backing.fileName.partition("] ")[2])
        assert len(held) == size
        return backing.changeId, held

    def write() -> None:
        at = dice.randrange(size // 512) * 512
        real.write("web", 2000, at, os.urandom(min(size - at, dice.choice([512, 4096, 3 * GRAIN]))))

    steps = ["write", "zero", "backup", "revert", "grow", "reset", "die"]
    chosen = [*steps, *dice.choices(steps, weights=[6, 2, 5, 3, 2, 1, 1], k=24), "write", "backup"]
    for step in chosen:
        match step:
            case "write":
                write()
            case "zero":
                with real.disk("live/web/2000") as handle:
                    at = dice.randrange(size // GRAIN) * GRAIN
                    handle.zero(min(size - at, 2 * GRAIN), at)
            case "backup":
                snapshot = take(vm, "backup")
                change_id, held = frozen(snapshot)
                for since, old in known.items():
                    wanted = different(old, held)
                    assert wanted <= covered(areas(vm, snapshot, 2000, since, size))
                    compared += 1
                    found_some += bool(wanted)
                assert different(bytes(size), held) <= covered(areas(vm, snapshot, 2000, "*", size))
                known[change_id] = held
                drop(snapshot)
            case "revert":
                write()
                target = take(vm, "target")
                _, before = frozen(target)
                write()
                between = take(vm, "between")  # a backup of what the revert throws away
                change_id, held = frozen(between)
                known[change_id] = held
                drop(between)
                done(target.RevertToSnapshot_Task())
                assert real.read("live/web/2000") == before
                drop(target)
            case "grow" if size < 2 * SIZE:
                size += GRAIN + 512
                disk = disks(vm.config)[0]
                disk.capacityInKB, disk.capacityInBytes = size >> 10, size
                change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
                reconfigure(vm, deviceChange=[change])
            case "reset":
                enable(vm, on=False)
                enable(vm)
                for since in known:
                    with pytest.raises(vim.fault.FileFault):
                        areas(vm, None, 2000, since, size)
                known.clear()
            case "die":
                real.again()
                vm = real.vm("web")
    assert compared > 3 and found_some > 2
