# SPDX-License-Identifier: MIT
"""OvfManager.CreateDescriptor, which vcsim lacks: a VM as an OVF 1.1 descriptor (DMTF DSP0243), beside its exported disks."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape, quoteattr

from pyVmomi import vim, vmodl

from fakes.vcenter import devices, soap
from fakes.vcenter.calls import Context, Handler, SoapFault, invalid_argument, not_found
from fakes.vcenter.http import Reply

_OVF = "http://schemas.dmtf.org/ovf/envelope/1"
_CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2"
_FORMAT = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
# kinds of resources (CIM_ResourceAllocationSettingData)
_CPU, _MEMORY, _CONTROLLER, _NIC, _DISK = 3, 4, 6, 10, 17


async def create_descriptor(context: Context) -> Reply:
    """CreateDescriptor(obj, cdp), of a VM."""
    values = soap.arguments(context.raw)
    entity, wanted = values.get("obj"), values.get("cdp")
    await context.require_login()
    if entity is None or wanted is None:
        raise invalid_argument("obj" if entity is None else "cdp")
    if context.call.leaf_type.get("obj", "VirtualMachine") != "VirtualMachine":
        raise SoapFault(vmodl.fault.NotSupported(), "Only virtual machines are described here.")
    vm = vim.VirtualMachine(entity._moId, None)
    paths = ("name", "config.guestFullName", "config.hardware.memoryMB", "config.hardware.numCPU")
    try:
        told = await context.world.admin.properties(vm, *paths)
        hardware = await devices.read(context.world, vm)
    except vmodl.fault.ManagedObjectNotFound as exc:
        raise not_found(vm) from exc
    text = describe(wanted.name or told["name"], told, hardware, wanted.ovfFiles or [])
    result = vim.OvfManager.CreateDescriptorResult(ovfDescriptor=text)
    return Reply.xml(200, soap.reply(context.call.method, result))


def handlers() -> dict[str, Handler]:
    """By wsdl name."""
    return {"CreateDescriptor": create_descriptor}


def describe(name: str, told: dict[str, Any], hardware: list[Any], files: list[Any]) -> str:
    """The descriptor. `told`: properties of the VM by path; `files`: OvfFile, in the order of the VM's disks."""
    disks = [each for each in hardware if isinstance(each, vim.vm.device.VirtualDisk)]
    nics = [each for each in hardware if isinstance(each, vim.vm.device.VirtualEthernetCard)]
    networks = sorted({_network(each) for each in nics})
    references = "".join(
        f'<File ovf:href={quoteattr(each.path)} ovf:id="file{number}" ovf:size="{each.size}"/>'
        for number, each in enumerate(files, 1)
    )
    listed = "".join(
        f'<Disk ovf:capacity="{each.capacityInBytes}" ovf:capacityAllocationUnits="byte" ovf:diskId="vmdisk{number}"'
        + (f' ovf:fileRef="file{number}"' if number <= len(files) else "")
        + f' ovf:format="{_FORMAT}"/>'
        for number, each in enumerate(disks, 1)
    )
    known = "".join(
        f"<Network ovf:name={quoteattr(each)}><Description>{escape(each)}</Description></Network>" for each in networks
    )
    items = [
        _item(
            1, _CPU, f"{told['config.hardware.numCPU']} virtual CPU(s)", VirtualQuantity=told["config.hardware.numCPU"]
        ),
        _item(
            2,
            _MEMORY,
            f"{told['config.hardware.memoryMB']}MB of memory",
            AllocationUnits="byte * 2^20",
            VirtualQuantity=told["config.hardware.memoryMB"],
        ),
        _item(3, _CONTROLLER, "SCSI Controller 0", Address=0, ResourceSubType="VirtualSCSI"),
    ]
    for number, each in enumerate(disks, 1):
        source = f"ovf:/disk/vmdisk{number}"
        label = each.deviceInfo.label if each.deviceInfo else f"Hard disk {number}"
        unit = each.unitNumber
        items.append(_item(3 + number, _DISK, label, AddressOnParent=unit, HostResource=source, Parent=3))
    for number, each in enumerate(nics, 4 + len(disks)):
        label = each.deviceInfo.label if each.deviceInfo else "Network adapter"
        items.append(_item(number, _NIC, label, Connection=_network(each), ResourceSubType="VmxNet3"))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Envelope xmlns="{_OVF}" xmlns:ovf="{_OVF}" xmlns:rasd="{_CIM}/CIM_ResourceAllocationSettingData"'
        f' xmlns:vssd="{_CIM}/CIM_VirtualSystemSettingData">'
        f"<References>{references}</References>"
        f"<DiskSection><Info>Virtual disk information</Info>{listed}</DiskSection>"
        f"<NetworkSection><Info>The list of logical networks</Info>{known}</NetworkSection>"
        f"<VirtualSystem ovf:id={quoteattr(name)}><Info>A virtual machine</Info><Name>{escape(name)}</Name>"
        '<OperatingSystemSection ovf:id="1"><Info>The kind of installed guest operating system</Info>'
        f"<Description>{escape(told.get('config.guestFullName') or '')}</Description></OperatingSystemSection>"
        "<VirtualHardwareSection><Info>Virtual hardware requirements</Info>"
        "<System><vssd:ElementName>Virtual Hardware Family</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>"
        f"<vssd:VirtualSystemIdentifier>{escape(name)}</vssd:VirtualSystemIdentifier>"
        "<vssd:VirtualSystemType>vmx-19</vssd:VirtualSystemType></System>"
        f"{''.join(items)}</VirtualHardwareSection></VirtualSystem></Envelope>\n"
    )


def _network(nic: Any) -> str:
    return getattr(nic.backing, "deviceName", None) or "VM Network"


def _item(number: int, kind: int, label: str, **settings: Any) -> str:
    values = {"ElementName": label, "InstanceID": number, "ResourceType": kind, **settings}
    # the schema wants the elements in the order of their names
    inner = "".join(f"<rasd:{key}>{escape(str(values[key]))}</rasd:{key}>" for key in sorted(values))
    return f"<Item>{inner}</Item>"
