# SPDX-License-Identifier: MIT
"""HotAdd as a third party does it: a proxy VM attaches the snapshot's disk to itself, reads it, detaches it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from fakes.core.fabric import FabricClient
from tests.fakes.vcenter.real import MIB, SIZE, RealSite, disks, done, drop, reconfigure, take
from tests.fakes.vcenter.real import real as real

NONPERSISTENT = "independent_nonpersistent"
fuse = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="a bus needs root and /dev/fuse"
)


def adding(file: str, *, controller: int | None = 1000, unit: int | None = None, mode: str = NONPERSISTENT) -> Any:
    """The change that attaches a file."""
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=file, diskMode=mode)
    disk = vim.vm.device.VirtualDisk(key=-1, backing=backing, controllerKey=controller, unitNumber=unit)
    return vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)


def removing(disk: Any, **more: Any) -> Any:
    """The change that takes a disk away."""
    return vim.vm.device.VirtualDeviceSpec(operation="remove", device=disk, **more)


def attached(real: RealSite) -> list[tuple[str, str]]:
    """What the storage has on record."""
    return [(each["by"], each["path"]) for each in real.call("disk.attachments")]


def proxy(real: RealSite) -> Any:
    """The proxy VM, found as a proxy finds itself: by its BIOS UUID."""
    index = real.session.RetrieveContent().searchIndex
    uuid = real.site.gateway.vm("proxy-2").uuid  # type: ignore[union-attr]
    found = index.FindByUuid(datacenter=None, uuid=uuid, vmSearch=True, instanceUuid=False)
    assert found.name == "proxy-2"
    return found


@fuse
@pytest.mark.root
def test_attach_read_detach(real: RealSite) -> None:
    devices = real.bus()
    data = os.urandom(SIZE)
    real.write("web", 2000, 0, data)
    snapshot = take(real.vm("web"))
    real.write("web", 2000, 0, b"later" * 1000)
    source = disks(snapshot.config)[0]
    me = proxy(real)
    reconfigure(me, deviceChange=[adding(source.backing.fileName)])
    [own, disk] = disks(me.config)
    assert own.key == 2000
    assert (disk.key, disk.controllerKey, disk.unitNumber, disk.deviceInfo.label) == (2001, 1000, 1, "Hard disk 2")
    assert (disk.capacityInBytes, disk.capacityInKB) == (SIZE, SIZE >> 10)
    assert (disk.backing.fileName, disk.backing.diskMode) == (source.backing.fileName, NONPERSISTENT)
    assert disk.backing.uuid == source.backing.uuid
    assert disk.backing.datastore.name == "datastore1"
    device = devices / f"wwn-0x{disk.backing.uuid.replace('-', '').lower()}"
    assert device.name.startswith("wwn-0x6000c29")
    assert device.read_bytes() == data
    with pytest.raises(vim.fault.FileLocked):  # what is attached can not be merged
        drop(snapshot)
    reconfigure(me, deviceChange=[removing(disk)])
    assert not device.exists()
    assert [d.key for d in disks(me.config)] == [2000]
    assert attached(real) == []
    drop(snapshot)
    entries = [e for e in real.journal() if e["method"] == "ReconfigVM_Task" and e["detail"]["state"] == "success"]
    assert [(e["detail"]["vm"], e["detail"]["attached"], e["detail"]["detached"]) for e in entries] == [
        ("proxy-2", ["[datastore1] web/web.vmdk"], []),
        ("proxy-2", [], ["[datastore1] web/web.vmdk"]),
    ]


@fuse
@pytest.mark.root
def test_attachments_survive_vcsim_and_the_bus(real: RealSite) -> None:
    data = os.urandom(SIZE)
    real.write("web", 2000, 0, data)
    snapshot = take(real.vm("web"))
    files = [d.backing.fileName for d in disks(snapshot.config)]
    reconfigure(proxy(real), deviceChange=[adding(files[0], unit=5), adding(files[1])])
    shown = [(d.key, d.unitNumber, d.backing.fileName) for d in disks(proxy(real).config)]
    real.again()
    assert [(d.key, d.unitNumber, d.backing.fileName) for d in disks(proxy(real).config)] == shown
    devices = real.bus()  # boots late: gets what is attached by now
    client = FabricClient(real.fabric / "bus-proxy-2.sock")
    names = wait_for(lambda: sorted(each["name"] for each in client.call("disk.list")), 2)
    assert (devices / device_of(disks(proxy(real).config)[2])).read_bytes() == data
    real.daemons.stop("bus-proxy-2")
    assert not [p for p in devices.iterdir() if p.name.startswith("wwn")]
    real.bus()
    assert wait_for(lambda: sorted(each["name"] for each in client.call("disk.list")), 2) == names
    # a proxy that comes back finds what it left, and takes it away
    left = [d for d in disks(proxy(real).config) if d.backing.diskMode == NONPERSISTENT]
    reconfigure(proxy(real), deviceChange=[removing(d) for d in left])
    assert client.call("disk.list") == attached(real) == []
    client.close()


def device_of(disk: Any) -> str:
    """The name under which the disk of another VM appears."""
    return f"wwn-0x{disk.backing.uuid.replace('-', '').lower()}"


def wait_for(ask: Any, many: int) -> list[str]:
    """Polls until there are so many."""
    import time

    end = time.monotonic() + 20
    while len(found := ask()) != many:
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return list(found)


def test_what_is_refused_leaves_no_trace(real: RealSite) -> None:
    web, me = real.vm("web"), proxy(real)
    snapshot = take(web)
    file, other = (d.backing.fileName for d in disks(snapshot.config))
    reconfigure(me, deviceChange=[adding(other, unit=3)])
    before = [(d.key, d.unitNumber) for d in disks(me.config)]
    bad_backing = vim.vm.device.VirtualDisk.SparseVer2BackingInfo(fileName=file, diskMode=NONPERSISTENT)
    sparse = vim.vm.device.VirtualDisk(key=-1, backing=bad_backing, controllerKey=1000)
    cases: list[tuple[Any, dict[str, Any], list[Any]]] = [
        (vim.fault.InvalidController, {"deviceIndex": 0, "controllerKey": 1001}, [adding(file, controller=1001)]),
        (vim.fault.InvalidDeviceSpec, {"deviceIndex": 0}, [adding(file, unit=3)]),
        (vim.fault.InvalidDeviceSpec, {"deviceIndex": 0}, [adding(file, unit=7)]),
        (vim.fault.InvalidDeviceSpec, {"deviceIndex": 0}, [adding(file, unit=64)]),
        (vim.fault.InvalidDeviceSpec, {"deviceIndex": 1}, [adding(file, unit=4), adding(other, unit=4)]),
        (vim.fault.FileNotFound, {"file": "[datastore1] web/no.vmdk"}, [adding("[datastore1] web/no.vmdk")]),
        (vim.fault.InvalidDatastorePath, {"datastorePath": "web/web.vmdk"}, [adding("web/web.vmdk")]),
        (vim.fault.InvalidDatastore, {"name": "nowhere"}, [adding("[nowhere] a/b.vmdk")]),
        (vim.fault.InvalidDatastore, {"name": "datastore2"}, [adding("[datastore2] far/far.vmdk")]),
        (vim.fault.FileLocked, {"file": other}, [adding(other)]),  # attached already
        (vim.fault.FileLocked, {"file": other}, [adding(file), adding(other)]),  # the first one is taken back
        (vim.fault.FileLocked, {"file": file}, [adding(file, mode="persistent")]),  # frozen
        (vim.fault.InvalidDeviceBacking, {"deviceIndex": 0}, [adding(file, mode="undoable")]),
        (
            vim.fault.InvalidDeviceBacking,
            {"deviceIndex": 0},
            [vim.vm.device.VirtualDeviceSpec(operation="add", device=sparse)],
        ),
        (vim.fault.InvalidDeviceSpec, {"deviceIndex": 0}, [removing(vim.vm.device.VirtualDisk(key=2044))]),
        (vmodl.fault.NotSupported, {}, [removing(disks(me.config)[0])]),
        (vmodl.fault.NotSupported, {}, [removing(disks(me.config)[1], fileOperation="destroy")]),
    ]
    for fault, fields, changes in cases:
        with pytest.raises(fault) as refused:
            reconfigure(me, deviceChange=changes)
        assert type(refused.value) is fault, refused.value
        assert {name: getattr(refused.value, name) for name in fields} == fields
        assert attached(real) == [("proxy-2", other.partition("] ")[2])]
        assert [(d.key, d.unitNumber) for d in disks(me.config)] == before
    assert me.name == "proxy-2"  # vcsim still lives
    assert "lost" not in [entry["fault"] for entry in real.journal()]
    # the running disk of another VM
    done(web.PowerOnVM_Task())
    running = disks(web.config)[0].backing.fileName
    with pytest.raises(vim.fault.FileLocked):
        reconfigure(me, deviceChange=[adding(running)])


@fuse
@pytest.mark.root
def test_a_late_failure_is_undone_in_reverse(real: RealSite, monkeypatch: pytest.MonkeyPatch) -> None:
    from fakes.vcenter import devices

    real.bus()
    client = FabricClient(real.fabric / "bus-proxy-2.sock")
    snapshot = take(real.vm("web"))
    file = disks(snapshot.config)[0].backing.fileName
    me = proxy(real)

    async def refuse(*_: Any) -> Any:
        raise vim.fault.GenericVmConfigFault(reason="the test")

    monkeypatch.setattr(devices, "write", refuse)
    with pytest.raises(vim.fault.GenericVmConfigFault):
        reconfigure(me, deviceChange=[adding(file)])
    assert attached(real) == client.call("disk.list") == []
    monkeypatch.undo()
    reconfigure(me, deviceChange=[adding(file)])
    [_, disk] = disks(me.config)
    monkeypatch.setattr(devices, "write", refuse)
    with pytest.raises(vim.fault.GenericVmConfigFault):
        reconfigure(me, deviceChange=[removing(disk)])
    monkeypatch.undo()
    assert attached(real) == [("proxy-2", "web/web.vmdk")]
    assert [each["name"] for each in client.call("disk.list")] == [device_of(disk)]
    client.close()


def test_vcsim_dies_while_a_disk_is_being_attached(real: RealSite, monkeypatch: pytest.MonkeyPatch) -> None:
    from fakes.vcenter import devices

    file = disks(take(real.vm("web")).config)[0].backing.fileName
    me, write, dying = proxy(real), devices.write, real.site.loop.run(real.site.gateway.world())

    async def die_first(world: Any, *more: Any) -> Any:
        if world is dying:
            world.simulator.process.kill()
            await world.simulator.ended()
        return await write(world, *more)

    monkeypatch.setattr(devices, "write", die_first)
    with pytest.raises(Exception):  # noqa: B017 - the session is lost: in one of several ways
        reconfigure(me, deviceChange=[adding(file)])
    monkeypatch.undo()
    real.session = real.site.connect()
    assert real.site.loop.run(real.site.gateway.world()) is not dying
    # neither there nor here, or both: never one without the other
    shown = [("proxy-2", d.backing.fileName.partition("] ")[2]) for d in disks(proxy(real).config)[1:]]
    assert wait_for(lambda: attached(real), 0) == shown == []
    reconfigure(proxy(real), deviceChange=[adding(file)])
    assert len(attached(real)) == len(disks(proxy(real).config)) - 1 == 1


def test_the_host_of_the_proxy_shows_the_disk_of_a_vm_of_another_host(real: RealSite, make_site: Any) -> None:
    from tests.fakes.vcenter.real import real_inventory

    inventory = real_inventory()
    vms = [vm.model_copy(update={"host": "esxi-2"}) if vm.name == "web" else vm for vm in inventory.vms]
    file = disks(take(real.vm("web")).config)[0].backing.fileName
    reconfigure(proxy(real), deviceChange=[adding(file)])
    host = make_site(
        fabric=False,
        fabric_folder=real.fabric,
        inventory=inventory.model_copy(update={"vms": vms}),
        view="host",
        host="esxi-1",
        username="root",
    )
    session = host.connect_as("root")
    shown = disks(host.vm(session, "proxy-2").config)
    assert [d.backing.uuid for d in shown] == [d.backing.uuid for d in disks(proxy(real).config)]
    assert shown[1].backing.fileName == file


def test_a_proxy_is_destroyed(real: RealSite) -> None:
    me = proxy(real)
    reconfigure(me, deviceChange=[adding(disks(take(real.vm("web")).config)[0].backing.fileName)])
    done(me.PowerOffVM_Task())
    done(me.Destroy_Task())
    assert attached(real) == []


def test_with_a_controller_of_its_own_in_the_same_spec(real: RealSite) -> None:
    me = proxy(real)
    file = disks(take(real.vm("web")).config)[0].backing.fileName
    controller = vim.vm.device.VirtualLsiLogicController(key=-7, busNumber=1, sharedBus="noSharing")
    first = vim.vm.device.VirtualDeviceSpec(operation="add", device=controller)
    reconfigure(me, deviceChange=[first, adding(file, controller=-7, unit=0)], memoryMB=768)
    disk = disks(me.config)[-1]
    made = next(d for d in me.config.hardware.device if isinstance(d, vim.vm.device.VirtualLsiLogicController))
    assert (disk.controllerKey, disk.unitNumber) == (made.key, 0)
    assert me.config.hardware.memoryMB == 768


def test_power_of_a_vm_whose_disk_is_attached(real: RealSite) -> None:
    web, me = real.vm("web"), proxy(real)
    file = disks(web.config)[0].backing.fileName
    reconfigure(me, deviceChange=[adding(file, mode="independent_persistent")])  # a restore by HotAdd
    with pytest.raises(vim.fault.FileLocked):
        done(web.PowerOnVM_Task())
    assert web.runtime.powerState == "poweredOff"
    with real.disk("attached/proxy-2/web/web.vmdk") as handle:
        handle.pwrite(b"restored", MIB)
    reconfigure(me, deviceChange=[removing(disks(me.config)[-1])])
    done(web.PowerOnVM_Task())
    assert web.runtime.powerState == "poweredOn"
    assert real.call("vm.get", vm="web")["power"] == "on"
    assert real.read("live/web/2000")[MIB : MIB + 8] == b"restored"


@fuse
@pytest.mark.root
def test_a_proxy_that_goes_down_sees_nothing_and_all_again(real: RealSite) -> None:
    devices: Path = real.bus()
    me = proxy(real)
    reconfigure(me, deviceChange=[adding(disks(take(real.vm("web")).config)[0].backing.fileName)])
    device = devices / device_of(disks(me.config)[-1])
    assert device.exists()
    done(me.PowerOffVM_Task())
    wait_for(lambda: [] if device.is_symlink() else ["gone"], 1)
    assert len(attached(real)) == 1
    done(me.PowerOnVM_Task())
    wait_for(lambda: ["there"] if device.exists() else [], 1)
