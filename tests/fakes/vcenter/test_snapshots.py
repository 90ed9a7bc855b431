# SPDX-License-Identifier: MIT
"""Snapshots: vSphere's view and the storage's chains stay in step, also when something fails on the way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from tests.fakes.vcenter.conftest import MakeSite, Site


@pytest.fixture
def vm(site: Site, session: Any) -> Any:
    """The VM with two disks, without snapshots."""
    found = site.vm(session, "files-vm")
    WaitForTask(found.RemoveAllSnapshots_Task())
    return found


def files(config: Any) -> dict[int, list[str]]:
    """Disk key → file names, base first."""
    chains = {}
    for device in config.hardware.device:
        if isinstance(device, vim.vm.device.VirtualDisk):
            chain, backing = [], device.backing
            while backing is not None:
                chain.insert(0, backing.fileName)
                backing = backing.parent
            chains[device.key] = chain
    return chains


def stored(site: Site, vm: str = "files-vm") -> dict[int, list[str]]:
    """The storage's chains, as datastore paths."""
    assert site.fabric is not None
    return {d["key"]: [f"[datastore1] {p}" for p in d["layers"]] for d in site.fabric.storage.vms[vm]["disks"]}


def take(vm: Any, name: str) -> Any:
    """A finished snapshot's reference."""
    task = vm.CreateSnapshot_Task(name=name, description=f"about {name}", memory=False, quiesce=False)
    WaitForTask(task)
    return task.info.result


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Polls for something true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)
    return value


def journal(site: Site, method: str) -> list[dict[str, Any]]:
    """Entries about a method."""
    lines = [json.loads(line) for line in site.journal.read_text().splitlines()]
    return [entry for entry in lines if entry["method"] == method]


def test_snapshot_names_the_frozen_file_and_the_vm_the_delta(site: Site, vm: Any) -> None:
    base = files(vm.config)
    snapshot = take(vm, "one")
    assert files(snapshot.config) == base
    assert files(vm.config) == stored(site)
    assert all(chain[-1].endswith("-000001.vmdk") or "-0000" in chain[-1] for chain in files(vm.config).values())
    assert site.fabric is not None
    [record] = site.fabric.storage.vms["files-vm"]["snapshots"]
    assert (record["name"], record["description"], record["ref"]) == ("one", "about one", snapshot._moId)
    WaitForTask(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert files(vm.config) == base == stored(site)
    assert site.fabric.storage.vms["files-vm"]["snapshots"] == []


def test_a_renamed_snapshot(site: Site, vm: Any) -> None:
    first, second = take(vm, "1"), take(vm, "2")
    made = vm.snapshot.rootSnapshotList[0].createTime
    first.RenameSnapshot(name="renamed", description=None)
    second.RenameSnapshot(name=None, description="what it is for")
    [root] = vm.snapshot.rootSnapshotList
    assert (root.name, root.description, root.createTime) == ("renamed", "about 1", made)
    assert [(s.name, s.description) for s in root.childSnapshotList] == [("2", "what it is for")]
    assert vm.snapshot.currentSnapshot._moId == second._moId
    assert site.fabric is not None
    kept = site.fabric.storage.vms["files-vm"]["snapshots"]
    assert [(s["name"], s["description"]) for s in kept] == [("renamed", "about 1"), ("2", "what it is for")]
    for name in ("", "x" * 81):
        with pytest.raises(vim.fault.InvalidName):
            first.RenameSnapshot(name=name)
    WaitForTask(first.RemoveSnapshot_Task(removeChildren=False))
    assert [s.name for s in vm.snapshot.rootSnapshotList] == ["2"]
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        first.RenameSnapshot(name="gone")


def test_removing_a_snapshot_below_another(site: Site, vm: Any) -> None:
    first, second, third = take(vm, "1"), take(vm, "2"), take(vm, "3")
    WaitForTask(first.RemoveSnapshot_Task(removeChildren=False))
    assert files(vm.config) == stored(site)
    assert [s.name for s in vm.snapshot.rootSnapshotList] == ["2"]
    # the storage merged what was above the first into the base: the second is frozen in the base's file now
    level = {key: chain[:1] for key, chain in stored(site).items()}
    assert files(second.config) == level
    assert files(third.config) == {key: chain[:2] for key, chain in stored(site).items()}
    WaitForTask(second.RemoveSnapshot_Task(removeChildren=True))
    assert vm.snapshot is None
    assert all(len(chain) == 1 for chain in stored(site).values())
    assert files(vm.config) == stored(site)


def test_remove_all(site: Site, vm: Any) -> None:
    base = files(vm.config)
    for name in ("a", "b", "c"):
        take(vm, name)
    WaitForTask(vm.RemoveAllSnapshots_Task())
    assert vm.snapshot is None
    assert files(vm.config) == base == stored(site)


def test_stub_files_survive_overlapping_snapshots(site: Site, vm: Any) -> None:
    folder = site.gateway._state / f"stubs-{site.gateway._lives}" / "datastore1" / "files-vm"  # type: ignore[operator]
    before = {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith(".vmsn")}
    user, backup = take(vm, "user"), take(vm, "backup")
    WaitForTask(backup.RemoveSnapshot_Task(removeChildren=False))
    WaitForTask(user.RemoveSnapshot_Task(removeChildren=False))
    after = {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith(".vmsn")}
    assert after == before
    spec = vim.vm.device.VirtualDeviceSpec(
        operation="edit",
        device=next(d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)),
    )
    WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[spec])))


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("failed", vim.fault.GenericVmConfigFault),
        ("no-space", vim.fault.NoDiskSpace),
        ("locked", vim.fault.FileLocked),
    ],
)
def test_a_refusing_storage_fails_the_task_with_a_typed_fault(site: Site, vm: Any, code: str, fault: Any) -> None:
    assert site.fabric is not None
    site.fabric.storage.fail["snapshot.create"] = code
    try:
        task = vm.CreateSnapshot_Task(name="no", memory=False, quiesce=False)
        with pytest.raises(fault):
            WaitForTask(task)
    finally:
        site.fabric.storage.fail.clear()
    assert task.info.state == "error"
    assert vm.snapshot is None
    assert [e["detail"]["state"] for e in journal(site, "CreateSnapshot_Task")][-2:] == ["queued", "error"]


def test_a_late_failure_is_undone_in_reverse(site: Site, vm: Any) -> None:
    assert site.fabric is not None
    site.fabric.storage.fail["snapshot.label"] = "failed"
    before = stored(site)
    try:
        with pytest.raises(vim.fault.GenericVmConfigFault):
            WaitForTask(vm.CreateSnapshot_Task(name="no", memory=False, quiesce=False))
    finally:
        site.fabric.storage.fail.clear()
    assert vm.snapshot is None
    assert stored(site) == before == files(vm.config)


def test_a_refused_merge_leaves_the_snapshot(site: Site, vm: Any) -> None:
    assert site.fabric is not None
    snapshot = take(vm, "stays")
    site.fabric.storage.fail["snapshot.remove"] = "failed"
    try:
        with pytest.raises(vim.fault.GenericVmConfigFault):
            WaitForTask(snapshot.RemoveSnapshot_Task(removeChildren=False))
    finally:
        site.fabric.storage.fail.clear()
    assert vm.snapshot.currentSnapshot == snapshot
    WaitForTask(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert vm.snapshot is None


def test_the_task_runs_while_the_storage_freezes(site: Site, vm: Any) -> None:
    assert site.fabric is not None
    site.fabric.storage.hold = hold = asyncio.Event()
    try:
        task = vm.CreateSnapshot_Task(name="slow", memory=False, quiesce=False)
        until(lambda: task.info.state == "running")
        assert vm.snapshot is None
        assert vm.name == "files-vm"  # reading goes on meanwhile
    finally:
        site.fabric.storage.hold = None
        site.loop.loop.call_soon_threadsafe(hold.set)
    WaitForTask(task)
    assert vm.snapshot.rootSnapshotList[0].name == "slow"


def test_snapshots_of_one_vm_by_two_clients_at_once(site: Site, vm: Any) -> None:
    other = site.vm(site.connect(), "files-vm")
    tasks = [
        who.CreateSnapshot_Task(name=f"s{n}", memory=False, quiesce=False) for n in range(4) for who in (vm, other)
    ]
    for task in tasks:
        WaitForTask(task)
    assert site.fabric is not None
    assert len(site.fabric.storage.vms["files-vm"]["snapshots"]) == 8
    assert files(vm.config) == stored(site)
    removals = [task.info.result.RemoveSnapshot_Task(removeChildren=False) for task in tasks]
    for removal in removals:
        WaitForTask(removal)
    assert vm.snapshot is None
    assert all(len(chain) == 1 for chain in stored(site).values())


@pytest.mark.parametrize("children", [False, True])
def test_a_current_snapshot_that_has_others_is_removed(make_site: MakeSite, children: bool) -> None:
    """vcsim ends at that: the gateway shows its own VMs, which may be reverted to any snapshot."""
    site = make_site(fabric=False, inventory=None, flags=["-dc", "1", "-vm", "1"])
    vm = site.vm(site.connect(), "DC0_H0_VM0")
    first, second, _ = (take(vm, name) for name in ("first", "second", "third"))
    WaitForTask(first.RevertToSnapshot_Task())
    other = take(vm, "other")  # two below the first
    WaitForTask(first.RevertToSnapshot_Task())
    assert WaitForTask(first.RemoveSnapshot_Task(removeChildren=children)) == "success"
    if children:
        assert vm.snapshot is None
        return
    assert {node.snapshot for node in vm.snapshot.rootSnapshotList} == {second, other}
    assert vm.snapshot.currentSnapshot in (second, other)
    assert WaitForTask(vm.snapshot.currentSnapshot.RemoveSnapshot_Task(removeChildren=False)) == "success"
    WaitForTask(vm.RemoveAllSnapshots_Task())
    assert vm.snapshot is None


def test_consolidation_is_a_task(vm: Any) -> None:
    task = vm.ConsolidateVMDisks_Task()
    assert WaitForTask(task) == "success"
    assert task.info.name.info.wsdlName == "ConsolidateVMDisks_Task"
    assert vm.runtime.consolidationNeeded is False


def test_unknown_and_nameless(site: Site, session: Any, vm: Any) -> None:
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vim.VirtualMachine("vm-9999", session._stub).CreateSnapshot_Task(name="x", memory=False, quiesce=False)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vim.vm.Snapshot("snapshot-9999", session._stub).RemoveSnapshot_Task(removeChildren=False)
    with pytest.raises(vim.fault.InvalidName):
        vm.CreateSnapshot_Task(name="", memory=False, quiesce=False)


def test_without_login_nothing_is_frozen(site: Site, session: Any, vm: Any) -> None:
    assert site.fabric is not None
    before = len(site.fabric.storage.log)
    stub = type(session._stub)(host="127.0.0.1", port=site.port, version="vim.version.v8_0_3_0", sslContext=site.trust)
    with pytest.raises(vim.fault.NotAuthenticated):
        vim.VirtualMachine(vm._moId, stub).CreateSnapshot_Task(name="x", memory=False, quiesce=False)
    assert len(site.fabric.storage.log) == before


def test_a_storage_that_is_gone(make_site: MakeSite) -> None:
    site = make_site()
    vm = site.vm(site.connect(), "linux-vm")
    assert site.fabric is not None
    (site.fabric.folder / "storage-datastore1.sock").unlink()
    with pytest.raises(vim.fault.CannotAccessFile):
        WaitForTask(vm.CreateSnapshot_Task(name="x", memory=False, quiesce=False))
    assert vm.snapshot is None
