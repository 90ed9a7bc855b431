# SPDX-License-Identifier: MIT
"""VMs that clients make, fill, start, revert and destroy: in vCenter and in the storage alike."""

from __future__ import annotations

import base64
import os
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from fakes.core.fabric import FabricError
from fakes.vcenter import devices
from tests.fakes.vcenter.real import MIB, SIZE, RealSite, disks, done, drop, reconfigure, take
from tests.fakes.vcenter.real import real as real


def wanted(name: str, *, sizes: tuple[int, ...] = (2 * MIB, MIB), path: str | None = None, **more: Any) -> Any:
    """A ConfigSpec as a restore program sends it: temporary keys, no file names."""
    controller = vim.vm.device.ParaVirtualSCSIController(key=-100, busNumber=0, sharedBus="noSharing")
    changes = [vim.vm.device.VirtualDeviceSpec(operation="add", device=controller)]
    for number, size in enumerate(sizes):
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="", diskMode="persistent", thinProvisioned=True
        )
        disk = vim.vm.device.VirtualDisk(
            key=-200 - number, controllerKey=-100, unitNumber=number, capacityInKB=size >> 10, backing=backing
        )
        changes.append(vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk))
    return vim.vm.ConfigSpec(
        name=name,
        guestId="debian12_64Guest",
        memoryMB=1024,
        numCPUs=2,
        files=vim.vm.FileInfo(vmPathName=path or "[datastore1]"),
        deviceChange=changes,
        **more,
    )


def create(real: RealSite, spec: Any, host: str | None = None) -> Any:
    """CreateVM as pyVmomi scripts do it; returns the VM."""
    content = real.session.RetrieveContent()
    datacenter = content.rootFolder.childEntity[0]
    cluster = datacenter.hostFolder.childEntity[0]
    chosen = next((h for h in cluster.host if h.name == host), None)
    return done(datacenter.vmFolder.CreateVM_Task(config=spec, pool=cluster.resourcePool, host=chosen))


def ticket(real: RealSite, vm: Any, key: int) -> None:
    """A read-write ticket for a disk, as disk libraries ask for it."""
    import http.client

    body = (
        '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>'
        '<NfcRandomAccessOpenDisk xmlns="urn:vim25"><_this type="NfcService">nfcService</_this>'
        f'<vm type="VirtualMachine">{vm._moId}</vm><diskDeviceKey>{key}</diskDeviceKey>'
        "</NfcRandomAccessOpenDisk></soapenv:Body></soapenv:Envelope>"
    )
    connection = http.client.HTTPSConnection("127.0.0.1", real.site.port, context=real.site.trust, timeout=30)
    connection.request("POST", "/sdk", body, {"Cookie": real.session._stub.cookie, "Content-Type": "text/xml"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.status == 200, text
    assert "<port>902</port>" in text


def test_a_restored_vm_from_creation_to_destruction(real: RealSite) -> None:
    vm = create(real, wanted("web-restored", changeTrackingEnabled=True))
    assert vm.name == "web-restored"
    shown = disks(vm.config)
    assert [(d.key, d.deviceInfo.label, d.capacityInBytes, d.unitNumber) for d in shown] == [
        (2000, "Hard disk 1", 2 * MIB, 0),
        (2001, "Hard disk 2", MIB, 1),
    ]
    files = ["[datastore1] web-restored/web-restored.vmdk", "[datastore1] web-restored/web-restored_1.vmdk"]
    assert [d.backing.fileName for d in shown] == files
    assert all(d.backing.uuid.startswith("6000C29") for d in shown)
    stored = real.call("vm.get", vm="web-restored")
    assert [(d["key"], d["path"], d["size"]) for d in stored["disks"]] == [
        (2000, "web-restored/web-restored.vmdk", 2 * MIB),
        (2001, "web-restored/web-restored_1.vmdk", MIB),
    ]
    assert (stored["power"], stored["tracking"], stored["uuid"]) == ("off", True, vm.config.uuid)
    text = base64.b64decode(real.call("file.read", path="web-restored/web-restored.vmx")).decode()
    assert 'memSize = "1024"' in text and 'numvcpus = "2"' in text
    # empty, and ready to be written
    ticket(real, vm, 2000)
    issued = real.hosts["esxi-1"].tickets[-1]
    assert (issued["vm"], issued["folder"], issued["read_only"]) == ("web-restored", "web-restored", False)
    assert real.read("file/web-restored/web-restored.vmdk") == bytes(2 * MIB)
    data = os.urandom(2 * MIB)
    with real.disk("file/web-restored/web-restored.vmdk") as handle:
        handle.pwrite(data, 0)
    # it outlives vcsim
    real.again()
    vm = real.vm("web-restored")
    assert [d.backing.fileName for d in disks(vm.config)] == files
    assert (vm.config.hardware.memoryMB, vm.config.hardware.numCPU, vm.config.changeTrackingEnabled) == (1024, 2, True)
    done(vm.PowerOnVM_Task())
    assert real.call("vm.get", vm="web-restored")["power"] == "on"
    assert disks(vm.config)[0].backing.changeId is not None
    snapshot = take(vm)
    assert real.read("file/web-restored/web-restored.vmdk") == data
    drop(snapshot)
    with pytest.raises(vim.fault.InvalidPowerState):
        done(vm.Destroy_Task())
    done(vm.PowerOffVM_Task())
    done(vm.Destroy_Task())
    with pytest.raises(FabricError) as gone:
        real.call("vm.get", vm="web-restored")
    assert gone.value.code == "not-found"
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        _ = vm.name
    real.again()
    with pytest.raises(StopIteration):
        real.vm("web-restored")
    # its name and its folder are free again
    create(real, wanted("web-restored"))
    entries = [e for e in real.journal() if e["method"] in ("CreateVM_Task", "Destroy_Task")]
    assert [(e["method"], e["detail"]["vm"], e["detail"]["state"], e["fault"]) for e in entries] == [
        ("CreateVM_Task", "web-restored", "queued", None),
        ("CreateVM_Task", "web-restored", "success", None),
        ("Destroy_Task", "web-restored", "queued", None),
        ("Destroy_Task", "web-restored", "error", "InvalidPowerState"),
        ("Destroy_Task", "web-restored", "queued", None),
        ("Destroy_Task", "web-restored", "success", None),
        ("CreateVM_Task", "web-restored", "queued", None),
        ("CreateVM_Task", "web-restored", "success", None),
    ]


def test_what_can_not_be_made(real: RealSite) -> None:
    no_controller = wanted("x")
    del no_controller.deviceChange[0]
    two_on_one = wanted("x")
    two_on_one.deviceChange[2].device.unitNumber = 0
    existing = wanted("x")
    existing.deviceChange[1].fileOperation = None
    cases: list[tuple[Any, Any, str | None]] = [
        (vim.fault.DuplicateName, wanted("web"), None),
        (vim.fault.InvalidName, wanted("a/b"), None),
        (vim.fault.InvalidDatastore, wanted("x", path="[datastore2]"), "10.77.21.2"),
        (vim.fault.InvalidController, no_controller, None),
        (vim.fault.InvalidDeviceSpec, two_on_one, None),
        (vim.fault.InvalidDeviceSpec, wanted("x", sizes=(0,)), None),
        (vmodl.fault.NotSupported, existing, None),
        (vim.fault.FileAlreadyExists, taken_file(), None),
    ]
    for fault, spec, host in cases:
        with pytest.raises(fault):
            create(real, spec, host)
    assert {each["vm"] for each in real.call("vm.list")} == {"web", "proxy-2"}
    content = real.session.RetrieveContent()
    datacenter = content.rootFolder.childEntity[0]
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        datacenter.vmFolder.CreateVM_Task(wanted("x"), vim.ResourcePool("resgroup-9999", real.session._stub))
    assert "lost" not in [entry["fault"] for entry in real.journal()]


def test_a_late_failure_is_undone(real: RealSite, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any) -> Any:
        raise vim.fault.GenericVmConfigFault(reason="the test")

    monkeypatch.setattr(devices, "assign", refuse)
    with pytest.raises(vim.fault.GenericVmConfigFault):
        create(real, wanted("x"))
    monkeypatch.undo()
    assert {each["vm"] for each in real.call("vm.list")} == {"web", "proxy-2"}
    with pytest.raises(StopIteration):
        real.vm("x")
    create(real, wanted("x"))


def taken_file() -> Any:
    """A disk whose file is another VM's."""
    spec = wanted("x")
    spec.deviceChange[1].device.backing.fileName = "[datastore1] web/web.vmdk"
    return spec


def test_a_new_gateway_adopts_what_clients_made(real: RealSite, make_site: Any) -> None:
    create(real, wanted("kept", path="[datastore1] kept-1/kept.vmx"))
    from tests.fakes.vcenter.real import real_inventory

    other = make_site(fabric=False, inventory=real_inventory(), fabric_folder=real.fabric)
    vm = other.vm(other.connect(), "kept")
    assert [d.backing.fileName for d in disks(vm.config)] == [
        "[datastore1] kept-1/kept.vmdk",
        "[datastore1] kept-1/kept_1.vmdk",
    ]
    assert (vm.config.hardware.memoryMB, vm.config.hardware.numCPU) == (1024, 2)
    assert vm.config.guestId == "debian12_64Guest"


def test_a_disk_is_added(real: RealSite) -> None:
    vm = real.vm("web")
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName="[datastore1]", diskMode="persistent", thinProvisioned=True
    )
    disk = vim.vm.device.VirtualDisk(key=-1, controllerKey=1000, capacityInKB=1024, backing=backing)
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
    reconfigure(vm, deviceChange=[change])
    made = disks(vm.config)[-1]
    assert (made.key, made.unitNumber, made.deviceInfo.label) == (2002, 2, "Hard disk 3")
    assert made.backing.fileName == "[datastore1] web/web_2.vmdk"
    assert [d["key"] for d in real.call("vm.get", vm="web")["disks"]] == [2000, 2001, 2002]
    ticket(real, vm, 2002)
    snapshot = take(vm)
    assert len(disks(snapshot.config)) == 3
    real.again()
    assert len(disks(real.vm("web").config)) == 3


def test_revert(real: RealSite) -> None:
    vm = real.vm("web")
    old = os.urandom(MIB)
    real.write("web", 2000, 0, old)
    snapshot = take(vm)
    done(vm.PowerOnVM_Task())
    real.write("web", 2000, 0, os.urandom(MIB))
    reconfigure(vm, memoryMB=1024, changeTrackingEnabled=True)
    done(snapshot.RevertToSnapshot_Task())
    assert real.read("live/web/2000") == old + bytes(SIZE - MIB)
    assert (vm.runtime.powerState, real.call("vm.get", vm="web")["power"]) == ("poweredOff", "off")
    assert (vm.config.hardware.memoryMB, vm.config.changeTrackingEnabled) == (512, False)
    assert real.call("vm.get", vm="web")["tracking"] is False
    stored = [f"[datastore1] {d['path']}" for d in real.call("vm.get", vm="web")["disks"]]
    assert [d.backing.fileName for d in disks(vm.config)] == stored
    assert vm.snapshot.currentSnapshot == snapshot
    real.write("web", 2000, 0, b"again")
    done(vm.RevertToCurrentSnapshot_Task())
    assert real.read("live/web/2000")[:MIB] == old
    take(vm, "later")
    with pytest.raises(vmodl.fault.NotSupported):
        done(snapshot.RevertToSnapshot_Task())
    real.again()
    vm = real.vm("web")
    assert [s.name for s in vm.snapshot.rootSnapshotList[0].childSnapshotList] == ["later"]
    done(vm.RemoveAllSnapshots_Task())
    assert real.read("live/web/2000")[:MIB] == old
    with pytest.raises(vim.fault.NotFound):
        vm.RevertToCurrentSnapshot_Task()
    states = [e["detail"]["state"] for e in real.journal() if e["method"].startswith("Revert") and e["detail"]]
    assert states == ["queued", "success", "queued", "success", "queued", "error"]


def test_a_vm_is_unregistered_and_registered_again(real: RealSite) -> None:
    vm = real.vm("web")
    folder, pool, host = vm.parent, vm.resourcePool, vm.runtime.host
    real.write("web", 2000, 0, b"kept")
    take(vm, "first")
    path = vm.config.files.vmPathName
    with pytest.raises(vim.fault.AlreadyExists):
        done(folder.RegisterVM_Task(path=path, asTemplate=False, pool=pool))
    with pytest.raises(vim.fault.InvalidPowerState):
        real.vm("proxy-2").UnregisterVM()
    vm.UnregisterVM()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        _ = vm.name
    again = done(folder.RegisterVM_Task(path=path, name="other", asTemplate=False, pool=pool, host=host))
    assert again.name == "other" and [each.capacityInBytes for each in disks(again.config)] == [SIZE, 2 * MIB]
    assert [each.name for each in again.snapshot.rootSnapshotList] == ["first"]
    drop(again.snapshot.currentSnapshot)
    assert real.read("live/web/2000")[:4] == b"kept"
    far = real.vm("far")
    path, elsewhere = far.config.files.vmPathName, host
    far.UnregisterVM()
    with pytest.raises(vim.fault.InvalidDatastore):
        done(folder.RegisterVM_Task(path=path, asTemplate=False, pool=pool, host=elsewhere))
    assert done(folder.RegisterVM_Task(path=path, asTemplate=False, pool=pool)).name == "far"
