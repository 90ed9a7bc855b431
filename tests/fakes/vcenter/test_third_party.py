# SPDX-License-Identifier: MIT
"""A script as a third party writes it, with plain pyVmomi: connect, look at everything, snapshot, ticket."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from pyVim.connect import SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import VmomiSupport, vim, vmodl

from tests.fakes.vcenter.conftest import HOSTS, USER, MakeSite, Site


def references(value: Any) -> list[Any]:
    """Managed objects in a property's value."""
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, VmomiSupport.ManagedObject)]


def scan(session: Any) -> tuple[set[str], int, list[str]]:
    """Reads every attribute of everything that can be reached: kinds of entities, number of objects, failures."""
    content = session.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.ManagedEntity], True)
    todo, seen, failures = [content.rootFolder, *view.view], set(), []
    for name in (p.name for p in content._GetPropertyList()):
        todo += references(getattr(content, name))
    while todo:
        target = todo.pop()
        if (type(target), target._moId) in seen:
            continue
        seen.add((type(target), target._moId))
        for described in target._GetPropertyList():
            try:
                todo += references(getattr(target, described.name))
            except vmodl.fault.MethodNotFound:
                pass  # newer than the version that was negotiated: pyVmomi refuses by itself
            except Exception as exc:
                failures.append(f"{type(target).__name__}.{described.name}: {type(exc).__name__} {exc}")
    return {type(v).__name__ for v in view.view}, len(seen), failures


def test_every_attribute_of_every_object_can_be_read(session: Any) -> None:
    kinds, seen, failures = scan(session)
    assert failures == []
    assert seen > 50
    assert kinds >= {"vim.HostSystem", "vim.VirtualMachine", "vim.Datastore"}


def test_the_same_on_a_host(make_site: MakeSite) -> None:
    session = make_site(view="host", host="esxi-2", username="root").connect_as("root")
    kinds, seen, failures = scan(session)
    assert failures == []
    assert seen > 40
    assert kinds >= {"vim.HostSystem", "vim.VirtualMachine", "vim.Datastore"}
    content = session.RetrieveContent()
    [vm] = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True).view
    with pytest.raises(vim.fault.InvalidPowerState) as caught:
        WaitForTask(vm.PowerOffVM_Task())
    assert caught.value.msg == "Invalid power state."


def test_the_inventory_is_what_the_file_says(site: Site, session: Any) -> None:
    content = session.RetrieveContent()
    hosts = content.viewManager.CreateContainerView(content.rootFolder, [vim.HostSystem], True).view
    assert sorted(host.name for host in hosts) == sorted(HOSTS.values())
    assert all([store.name for store in host.datastore] == ["datastore1"] for host in hosts)
    vm = site.vm(session, "files-vm")
    disks = [d for d in vm.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)]
    assert [(d.key, d.deviceInfo.label, d.capacityInBytes) for d in disks] == [
        (2000, "Hard disk 1", 64 << 20),
        (2001, "Hard disk 2", 32 << 20),
    ]
    assert [d.backing.fileName for d in disks] == [
        "[datastore1] files-vm/files-vm.vmdk",
        "[datastore1] files-vm/files-vm_1.vmdk",
    ]
    assert vm.runtime.powerState == "poweredOff"
    assert vm.runtime.host.name == HOSTS["esxi-2"]
    assert vm.config.uuid == site.gateway.vm("files-vm").uuid
    assert site.vm(session, "linux-vm").runtime.powerState == "poweredOn"


def test_snapshot_created_and_removed_with_wait_for_task(site: Site, session: Any) -> None:
    vm = site.vm(session, "files-vm")
    assert vm.snapshot is None
    task = vm.CreateSnapshot_Task(name="mine", description="by a third party", memory=False, quiesce=False)
    assert WaitForTask(task) == "success"
    assert task.info.name.info.wsdlName == "CreateSnapshot_Task"
    assert task.info.reason.userName == USER
    snapshot = task.info.result
    assert vm.snapshot.currentSnapshot == snapshot
    assert [(s.name, s.description) for s in vm.snapshot.rootSnapshotList] == [("mine", "by a third party")]
    assert WaitForTask(snapshot.RemoveSnapshot_Task(removeChildren=False)) == "success"
    assert vm.snapshot is None
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        _ = snapshot.config


def test_wrong_password_is_refused(site: Site) -> None:
    with pytest.raises(vim.fault.InvalidLogin):
        site.connect("wrong")


def test_the_certificate_is_checked(site: Site) -> None:
    with pytest.raises(Exception, match=r"(?i)certificate"):
        SmartConnect(host="127.0.0.1", port=site.port, user=USER, pwd="x", sslContext=ssl.create_default_context())


def test_gateway_work_does_not_show_in_recent_tasks(site: Site, session: Any) -> None:
    vm = site.vm(session, "linux-vm")
    task = vm.CreateSnapshot_Task(name="t", memory=False, quiesce=False)
    WaitForTask(task)
    WaitForTask(task.info.result.RemoveSnapshot_Task(removeChildren=False))
    kinds = [recent.info.descriptionId for recent in vm.recentTask]
    assert kinds == ["VirtualMachine.powerOn", "VirtualMachine.createSnapshot", "vm.Snapshot.remove"]
