# SPDX-License-Identifier: MIT
"""Builds an inventory in an empty vcsim through its own API: datacenter, cluster, hosts, datastores, VMs.

Two *views*: a vCenter (`-dc 0`, everything is made) and a host (`-esx -vm 0 -ds 0`, where folder, pool and host are
there). Datastores of vcsim are stub folders; real disks live with the storage service. Labels, device keys, UUIDs and
file names are sent explicitly, since vcsim's own differ from vSphere's (vcsim reference section 7). A host is added by
its address, which then is its name and its first VMkernel adapter's address (section 5).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyVmomi import vim

from fakes.core.inventory import EsxiHost, Inventory, VirtualMachine
from fakes.vcenter.admin import AdminSession
from fakes.vcenter.machine import Machine, disk_uuid
from fakes.vcenter.machine import folder as folder_of

GUEST_IDS = {"linux": "debian12_64Guest", "windows": "windows2019srvNext_64Guest", "other": "otherGuest64"}
FAMILIES = {"linux": "linuxGuest", "windows": "windowsGuest", "other": "otherGuestFamily"}
CONTROLLER = 1000
FIRST_DISK = 2000


@dataclass
class Places:
    """What has been built: references by name."""

    datacenter: Any = None
    hosts: dict[str, Any] = field(default_factory=dict)  # name in the inventory → HostSystem
    datastores: dict[str, Any] = field(default_factory=dict)
    vms: dict[str, Any] = field(default_factory=dict)
    vm_folder: Any = None
    pool: Any = None

    def vm_name(self, moid: str) -> str | None:
        """The name of a VM by its reference."""
        return next((name for name, vm in self.vms.items() if vm._moId == moid), None)

    def host_name(self, moid: str) -> str | None:
        """The inventory's name of a host by its reference."""
        return next((name for name, host in self.hosts.items() if host._moId == moid), None)


async def build_vcenter(admin: AdminSession, inventory: Inventory, stubs: Path) -> Places:
    """Makes everything but VMs in an empty vcsim; `stubs` gets one folder a datastore. Raises vmodl.MethodFault."""
    places = Places()
    root = admin.content.rootFolder
    places.datacenter = await admin.call(root, "CreateDatacenter", name=inventory.datacenter)
    folders = await admin.properties(places.datacenter, "hostFolder", "vmFolder")
    places.vm_folder = folders["vmFolder"]
    cluster = await admin.call(
        folders["hostFolder"], "CreateClusterEx", name=inventory.cluster, spec=vim.cluster.ConfigSpecEx()
    )
    places.pool = (await admin.properties(cluster, "resourcePool"))["resourcePool"]
    for host in inventory.hosts:
        spec = vim.host.ConnectSpec(hostName=str(host.address), userName="root", password="-", force=True)
        task = await admin.call(cluster, "AddHost_Task", spec=spec, asConnected=True)
        places.hosts[host.name] = await admin.finished(task)
    await _datastores(admin, inventory, places, stubs)
    return places


async def build_host(admin: AdminSession, inventory: Inventory, host: EsxiHost, stubs: Path) -> Places:
    """Makes the datastores that `host` mounts in a `vcsim -esx`. Raises vmodl.MethodFault."""
    places = Places(datacenter=vim.Datacenter("ha-datacenter", None))
    places.vm_folder = (await admin.properties(places.datacenter, "vmFolder"))["vmFolder"]
    places.hosts[host.name] = vim.HostSystem("ha-host", None)
    places.pool = vim.ResourcePool("ha-root-pool", None)
    await _datastores(admin, inventory, places, stubs)
    return places


async def _datastores(admin: AdminSession, inventory: Inventory, places: Places, stubs: Path) -> None:
    for store in inventory.datastores:
        # /tmp is that of a container, where nothing can be made beforehand
        folder = stubs if stubs == Path("/tmp") else stubs / store.name
        for name in store.hosts:
            if name not in places.hosts:
                continue
            if folder != stubs:
                folder.mkdir(parents=True, exist_ok=True)
            manager = (await admin.properties(places.hosts[name], "configManager.datastoreSystem"))[
                "configManager.datastoreSystem"
            ]
            try:
                made = await admin.call(manager, "CreateLocalDatastore", name=store.name, path=str(folder))
            except KeyError:
                continue  # mounted on a further host: vcsim answers an empty reference (reference section 7)
            places.datastores[store.name] = made


def _controller() -> Any:
    return vim.vm.device.ParaVirtualSCSIController(
        key=CONTROLLER,
        deviceInfo=vim.Description(label="SCSI controller 0", summary="VMware paravirtual SCSI"),
        busNumber=0,
        sharedBus="noSharing",
        scsiCtlrUnitNumber=7,
    )


def instance_uuid(vm: VirtualMachine) -> str:
    """vCenter's own UUID of the VM; stable over restarts."""
    return str(uuid.uuid5(uuid.UUID(vm.uuid), "instance"))


def unit(key: int) -> int:
    """The unit of a disk's key on its controller; 7 is the controller's own."""
    number = key - FIRST_DISK
    return number if number < 7 else number + 1


def _disk(vm: VirtualMachine, index: int) -> Any:
    disk = vm.disks[index]
    key = vm.disk_key(index)
    return vim.vm.device.VirtualDisk(
        key=key,
        controllerKey=CONTROLLER,
        unitNumber=unit(key),
        deviceInfo=vim.Description(label=vm.disk_label(index), summary=f"{disk.size >> 10:,} KB"),
        capacityInKB=disk.size >> 10,
        capacityInBytes=disk.size,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=vm.datastore_path(index),
            diskMode="persistent",
            thinProvisioned=disk.thin,
            writeThrough=False,
            uuid=disk_uuid(vm.uuid, key),
        ),
    )


def mac_address(vm: VirtualMachine) -> str:
    """The NIC's address, in VMware's range of generated ones."""
    tail = uuid.UUID(vm.uuid).bytes[-3:]
    return "00:50:56:" + ":".join(f"{byte:02x}" for byte in (tail[0] & 0x3F, tail[1], tail[2]))


def _nic(vm: VirtualMachine) -> Any:
    return vim.vm.device.VirtualVmxnet3(
        key=4000,
        deviceInfo=vim.Description(label="Network adapter 1", summary="VM Network"),
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"),
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=True, allowGuestControl=True, connected=vm.power == "on"
        ),
        addressType="assigned",
        macAddress=mac_address(vm),
    )


def tracking_options(vm: VirtualMachine, *, on: bool) -> list[Any]:
    """What a configuration file says of changed block tracking, as `extraConfig` shows it."""
    text = "TRUE" if on else "FALSE"
    keys = ["ctkEnabled", *(f"scsi0:{unit(vm.disk_key(index))}.ctkEnabled" for index in range(len(vm.disks)))]
    return [vim.option.OptionValue(key=key, value=text) for key in keys]


def config_spec(vm: VirtualMachine) -> Any:
    """The ConfigSpec that makes `vm` in vcsim."""
    devices = [_controller(), *(_disk(vm, index) for index in range(len(vm.disks)))]
    if vm.nic is not None:
        devices.append(_nic(vm))
    changes = []
    for device in devices:
        is_disk = isinstance(device, vim.vm.device.VirtualDisk)
        operation = "create" if is_disk else None
        changes.append(vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation=operation, device=device))
    return vim.vm.ConfigSpec(
        name=vm.name,
        uuid=vm.uuid,
        instanceUuid=instance_uuid(vm),
        guestId=GUEST_IDS[vm.os],
        version="vmx-19",
        memoryMB=vm.memory_mib,
        numCPUs=vm.cpus,
        files=vim.vm.FileInfo(vmPathName=f"[{vm.datastore}] {folder_of(vm)}/{vm.name}.vmx"),
        changeTrackingEnabled=isinstance(vm, Machine) and vm.tracking,
        extraConfig=tracking_options(vm, on=True) if isinstance(vm, Machine) and vm.tracking else [],
        deviceChange=changes,
    )


async def build_vm(admin: AdminSession, places: Places, vm: VirtualMachine) -> Any:
    """Makes one VM (without snapshots), powers it on if it is, and returns its reference. Raises vmodl.MethodFault."""
    task = await admin.call(
        places.vm_folder, "CreateVM_Task", config=config_spec(vm), pool=places.pool, host=places.hosts[vm.host]
    )
    made = await admin.finished(task)
    places.vms[vm.name] = made
    if vm.power == "on":
        await admin.finished(await admin.call(made, "PowerOnVM_Task"))
    return made


def vmx(vm: VirtualMachine) -> str:
    """The VM's configuration file, as the host keeps it beside the disks."""
    lines = {
        ".encoding": "UTF-8",
        "config.version": "8",
        "virtualHW.version": "19",
        "displayName": vm.name,
        "guestOS": GUEST_IDS[vm.os].removesuffix("Guest").replace("_", "-"),
        "memSize": str(vm.memory_mib),
        "numvcpus": str(vm.cpus),
        "uuid.bios": _vmx_uuid(vm.uuid),
        "vc.uuid": _vmx_uuid(instance_uuid(vm)),
        "nvram": f"{vm.name}.nvram",
        "scsi0.present": "TRUE",
        "scsi0.virtualDev": "pvscsi",
    }
    for index in range(len(vm.disks)):
        at = unit(vm.disk_key(index))
        lines |= {
            f"scsi0:{at}.present": "TRUE",
            f"scsi0:{at}.deviceType": "scsi-hardDisk",
            f"scsi0:{at}.fileName": vm.disk_file(index).rpartition("/")[2],
        }
    if vm.nic is not None:
        lines |= {
            "ethernet0.present": "TRUE",
            "ethernet0.virtualDev": "vmxnet3",
            "ethernet0.networkName": "VM Network",
            "ethernet0.addressType": "vpx",
            "ethernet0.generatedAddress": mac_address(vm),
        }
    return "".join(f'{key} = "{value}"\n' for key, value in lines.items())


def _vmx_uuid(text: str) -> str:
    digits = [f"{byte:02x}" for byte in uuid.UUID(text).bytes]
    return " ".join(digits[:8]) + "-" + " ".join(digits[8:])
