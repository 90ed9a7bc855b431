# SPDX-License-Identifier: MIT
"""What a direct-SAN client reads from vCenter: datastore → VMFS extent → LUN of the host, by its NAA identifier."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim, vmodl

from fakes.core.fabric import serve
from fakes.vcenter.hoststorage import HostStorage, lun
from tests.fakes.vcenter.real import MIB, RealSite
from tests.fakes.vcenter.real import real as real


def by_name(real: RealSite, kind: Any) -> dict[str, Any]:
    """All objects of a kind."""
    content = real.session.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
    return {each.name: each for each in view.view}


def naa(real: RealSite, datastore: str) -> str:
    """The storage's word."""
    return str(real.call("datastore.info", datastore)["lun"]["naa"])


def luns(device: Any) -> list[str]:
    """Canonical names of a host's LUNs."""
    return [each.canonicalName for each in device.scsiLun]


def test_a_lun_is_matched_to_its_datastore(real: RealSite) -> None:
    store = by_name(real, vim.Datastore)["datastore1"]
    assert isinstance(store.info, vim.host.VmfsDatastoreInfo)
    [extent] = store.info.vmfs.extent
    assert (extent.diskName, extent.partition) == (naa(real, "datastore1"), 1)
    assert (store.info.name, store.info.vmfs.name, store.info.vmfs.capacity) == ("datastore1", "datastore1", 128 * MIB)
    info = real.call("datastore.info", "datastore1")
    assert (store.summary.type, store.summary.capacity, store.summary.freeSpace) == ("VMFS", 128 * MIB, info["free"])
    assert store.info.freeSpace == info["free"]
    hosts = by_name(real, vim.HostSystem)
    near, far = hosts["10.77.21.2"], hosts["10.77.22.2"]
    # only hosts that mount it see the LUN
    assert luns(near.config.storageDevice)[-1:] == [naa(real, "datastore1")]
    assert luns(far.config.storageDevice)[-2:] == [naa(real, "datastore1"), naa(real, "datastore2")]
    disk = next(each for each in near.config.storageDevice.scsiLun if each.canonicalName == extent.diskName)
    assert isinstance(disk, vim.host.ScsiDisk)
    assert disk.capacity.block * disk.capacity.blockSize == 128 * MIB
    assert disk.deviceName == f"/vmfs/devices/disks/{extent.diskName}"
    # what vcsim shows of itself is still there, once
    keys = [each.key for each in near.config.storageDevice.scsiLun]
    assert len(keys) == len(set(keys)) == 3
    adapters = near.config.storageDevice.hostBusAdapter
    assert [type(a).__name__ for a in adapters].count("vim.host.InternetScsiHba") == 1
    assert adapters[-1].iScsiName.startswith("iqn.1998-01.com.vmware:esxi-1-")
    assert near.config.storageDevice.softwareInternetScsiEnabled is True
    assert adapters[-1].configuredStaticTarget == []  # nobody said where the array is


def test_topology_paths_and_mounts_name_the_lun(real: RealSite) -> None:
    far = by_name(real, vim.HostSystem)["10.77.22.2"]
    device = far.config.storageDevice
    keys = {each.canonicalName: each.key for each in device.scsiLun}
    adapters = {each.key: each.device for each in device.hostBusAdapter}
    wanted = {keys[naa(real, name)] for name in ("datastore1", "datastore2")}
    interface = device.scsiTopology.adapter[-1]
    assert adapters[interface.adapter] == "vmhba65"
    assert {each.scsiLun for each in interface.target[0].lun} == wanted
    # every LUN has its path, those of vcsim's template and ours (a client joins the two lists by key)
    assert {each.lun for each in device.multipathInfo.lun} >= wanted
    paths = [path for each in device.multipathInfo.lun if each.lun in wanted for path in each.path]
    assert {adapters[path.adapter] for path in paths} == {"vmhba65"}
    mounted = {m.volume.name: m.volume for m in far.config.fileSystemVolume.mountInfo if m.volume.type == "VMFS"}
    store = by_name(real, vim.Datastore)["datastore2"]
    assert mounted["datastore2"].uuid == store.info.vmfs.uuid
    system = far.configManager.storageSystem
    assert {"datastore1", "datastore2"} <= {m.volume.name for m in system.fileSystemVolumeInfo.mountInfo}
    near = by_name(real, vim.HostSystem)["10.77.21.2"]
    assert "datastore2" not in {m.volume.name for m in near.config.fileSystemVolume.mountInfo}
    query = vmodl.query.PropertyCollector
    for path, kind in (
        ("config.storageDevice.multipathInfo", "lun"),
        ("config.storageDevice.scsiTopology", "adapter"),
        ("config.fileSystemVolume", "mountInfo"),
    ):
        spec = query.FilterSpec(
            objectSet=[query.ObjectSpec(obj=far)],
            propSet=[query.PropertySpec(type=vim.HostSystem, pathSet=[path])],
        )
        [found] = real.session.RetrieveContent().propertyCollector.RetrieveContents([spec])
        whole: Any = far
        for name in path.split("."):
            whole = getattr(whole, name)
        assert len(getattr(found.propSet[0].val, kind)) == len(getattr(whole, kind)), path


def test_every_way_of_reading_gives_the_same(real: RealSite) -> None:
    hosts = by_name(real, vim.HostSystem)
    expected = {host.name: luns(host.config.storageDevice) for host in hosts.values()}
    query = vmodl.query.PropertyCollector
    collector = real.session.RetrieveContent().propertyCollector
    paths = ["config.storageDevice", "config.storageDevice.scsiLun", "config.storageDevice.hostBusAdapter", "config"]
    for path in paths:
        spec = query.FilterSpec(
            objectSet=[query.ObjectSpec(obj=host) for host in hosts.values()],
            propSet=[query.PropertySpec(type=vim.HostSystem, pathSet=["name", path])],
        )
        for found in collector.RetrieveContents([spec]):
            values = {each.name: each.val for each in found.propSet}
            value = values[path]
            if path.endswith("hostBusAdapter"):
                assert [a.device for a in value].count("vmhba65") == 1
                continue
            device = value.storageDevice if path == "config" else value
            shown = [each.canonicalName for each in (device if path.endswith("scsiLun") else device.scsiLun)]
            assert shown == expected[values["name"]], path
    for host in hosts.values():
        assert luns(host.configManager.storageSystem.storageDeviceInfo) == expected[host.name]
    # all at once, and a datastore beside the hosts
    store = by_name(real, vim.Datastore)["datastore2"]
    spec = query.FilterSpec(
        objectSet=[query.ObjectSpec(obj=each) for each in (*hosts.values(), store)],
        propSet=[
            query.PropertySpec(type=vim.HostSystem, pathSet=["config"]),
            query.PropertySpec(type=vim.Datastore, pathSet=["info", "summary"]),
        ],
    )
    found = collector.RetrieveContents([spec])
    info = next(p.val for p in found[-1].propSet if p.name == "info")
    assert info.vmfs.extent[0].diskName == naa(real, "datastore2")
    assert [luns(p.val.storageDevice) for each in found[:-1] for p in each.propSet] == list(expected.values())


def test_targets_of_the_array_are_shown_from_the_next_login_on(real: RealSite) -> None:
    async def array(method: str, params: dict[str, Any]) -> Any:
        assert (method, params) == ("lun.info", {})
        target = {"target": "iqn.2026-01.lab:san", "portal": "10.77.9.10:3260"}
        return {**target, "lun": 4, "vendor": "VADPLAB", "model": "SAN"}

    real.site.loop.run(serve(real.fabric / "san-datastore1.sock", array))
    real.session = real.site.connect()
    host = by_name(real, vim.HostSystem)["10.77.21.2"]
    adapter = host.config.storageDevice.hostBusAdapter[-1]
    [static] = adapter.configuredStaticTarget
    assert (static.address, static.port, static.iScsiName) == ("10.77.9.10", 3260, "iqn.2026-01.lab:san")
    assert [(s.address, s.port) for s in adapter.configuredSendTarget] == [("10.77.9.10", 3260)]
    assert host.config.storageDevice.scsiLun[-1].vendor == "VADPLAB"


def test_replies_about_other_things_pass_as_they_are() -> None:
    storage = HostStorage()
    raw = {"name": "d", "free": 5, "lun": {"naa": "naa.6" + "0" * 31, "size": 1 << 20}}
    storage.luns = {"d": lun(raw)}
    for body in (
        b"<x>scsiLun></x>",
        b'<returnval xsi:type="LocalDatastoreInfo"><name>other</name></returnval>',
        b'<obj type="HostSystem">host-9</obj><scsiLun xsi:type="HostScsiDisk"></scsiLun>',
        b"<type>OTHER</type>",
    ):
        assert storage.patch(body) == body
