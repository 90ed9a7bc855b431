# SPDX-License-Identifier: MIT
"""The VM that a restore makes in vCenter: planned from the restore point's manifest, marked until it is whole.

The *mark* stands in the VM's annotation from its creation until the restore has ended well, so that a half-made VM is known
whoever looks. The new VM has a new BIOS UUID and no network adapter: it must not meet the original on its network.
Blocking (pyVmomi); callers use a thread.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from engine.errors import InputError, VadplabError
from engine.vsphere import Disk, VSphere

TASK_DEADLINE = 120.0
PER_CONTROLLER = 15
_SETTING = re.compile(r'^\s*([\w.:]+)\s*=\s*"([^"]*)"\s*$', re.MULTILINE)
_CONTROLLERS = {
    "pvscsi": vim.vm.device.ParaVirtualSCSIController,
    "lsisas1068": vim.vm.device.VirtualLsiLogicSASController,
    "lsilogic": vim.vm.device.VirtualLsiLogicController,
    "buslogic": vim.vm.device.VirtualBusLogicController,
}
_NAME = re.compile(r"[^/\\%\x00-\x1f]{1,80}")


class VmExists(InputError):
    """A VM of the new name exists already."""

    code = "restore.vm-exists"
    advice = "Name another one with --name; nothing was changed."


class PlaceUnknown(InputError):
    """The host or the datastore for the new VM does not exist, or the host does not mount the datastore."""

    code = "restore.place"
    advice = "Name a host and a datastore of this vCenter with --host and --datastore."


class OtherDisks(VadplabError):
    """vCenter made the new VM with other disks than it was asked for."""

    code = "restore.other-disks"
    symptom = "disks differ"
    advice = "The half-made VM was destroyed. Look at the VM's settings in the restore point."


@dataclass(frozen=True, slots=True)
class Planned:
    """The VM that is wanted. `disks`: entries of the manifest, in the order of their keys."""

    name: str
    uuid: str
    guest_id: str
    memory_mib: int
    cpus: int
    firmware: str
    controller: str
    disks: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where it goes: references of folder, pool and host, and the host's and datastore's names."""

    folder: Any
    pool: Any
    host: Any
    host_name: str
    datastore: str


@dataclass(frozen=True, slots=True)
class Made:
    """The VM in vCenter: its reference, and its disk for each key of the manifest."""

    moref: str
    disks: dict[int, Disk]


def planned(name: str, point: dict[str, Any]) -> Planned:
    """What the manifest says of the VM (`points.find`, with its `vmx` and `disks`). Raises InputError for the name."""
    check_name(name)
    settings = dict(_SETTING.findall(str(point.get("vmx") or "")))
    firmware = settings.get("firmware", "bios")
    controller = settings.get("scsi0.virtualDev", "pvscsi")
    return Planned(
        name=name,
        uuid=str(uuid.uuid4()),
        guest_id=guest_id(settings.get("guestOS", "")),
        memory_mib=_number(settings.get("memSize"), 512),
        cpus=_number(settings.get("numvcpus"), 1),
        firmware=firmware if firmware in ("bios", "efi") else "bios",
        controller=controller if controller in _CONTROLLERS else "pvscsi",
        disks=tuple(sorted(point["disks"], key=lambda disk: int(disk["key"]))),
    )


def check_name(name: str) -> None:
    """Raises InputError unless a VM may have that name."""
    if not _NAME.fullmatch(name):
        raise InputError(f"not a name for a VM: {name!r}", next="1 to 80 characters, without / \\ and %.")


def guest_id(guest_os: str) -> str:
    """vSphere's guest id for the short name in a `.vmx` (`debian12-64` → `debian12_64Guest`); `otherGuest64` when unknown."""
    known = {_plain(value): str(value) for value in vim.vm.GuestOsDescriptor.GuestOsIdentifier.values}
    return known.get(_plain(guest_os), "otherGuest64")


def place(
    vsphere: VSphere, host: str | None, datastore: str, name: str, *, resolver: Mapping[str, str], step: str
) -> Place:
    """Looks up where the VM goes. `host`: its name in vCenter, or a name of `resolver`; None: any that mounts the datastore.

    Raises:
        PlaceUnknown, VmExists.
    """

    def look() -> Place:
        if any(vm.name == name for vm in _all(vsphere, vim.VirtualMachine)):
            raise VmExists(f"{vsphere.name} has a VM {name}", step=step)
        store = next((d for d in _all(vsphere, vim.Datastore) if d.name == datastore), None)
        if store is None:
            raise PlaceUnknown(f"{vsphere.name} has no datastore {datastore}", step=step)
        mounts = {mount.key.name: mount.key for mount in store.host or []}
        chosen = host if host is not None else next(iter(sorted(mounts)), None)
        if chosen is not None and chosen not in mounts:
            chosen = resolver.get(chosen, chosen)
        if chosen is None or chosen not in mounts:
            raise PlaceUnknown(
                f"{host or 'no host'} does not mount {datastore} (mounted by: {', '.join(sorted(mounts)) or 'none'})",
                step=step,
            )
        system = mounts[chosen]
        above = system.parent
        while above is not None and not isinstance(above, vim.Datacenter):
            above = above.parent
        if above is None:
            raise PlaceUnknown(f"{chosen} is in no datacenter", step=step)
        return Place(above.vmFolder, system.parent.resourcePool, system, host or chosen, datastore)

    return vsphere.call(look, step=step)


def create(vsphere: VSphere, plan: Planned, where: Place, mark: str, *, step: str) -> Made:
    """Makes the VM, powered off, with empty disks. Raises VSphereFault, TaskTimedOut, OtherDisks (it is destroyed then)."""
    spec = vim.vm.ConfigSpec(
        name=plan.name,
        uuid=plan.uuid,
        guestId=plan.guest_id,
        memoryMB=plan.memory_mib,
        numCPUs=plan.cpus,
        firmware=plan.firmware,
        annotation=mark,
        files=vim.vm.FileInfo(vmPathName=f"[{where.datastore}]"),
        deviceChange=_devices(plan, where.datastore),
    )
    task = vsphere.call(
        lambda: where.folder.CreateVM_Task(config=spec, pool=where.pool, host=where.host), step=step, repeatable=False
    )
    moref = str(vsphere.wait(task, step=step, timeout=TASK_DEADLINE)._moId)
    made = vsphere.find_vm(plan.name, step=step)
    if [d.capacity for d in made.disks] != [int(d["capacity"]) for d in plan.disks]:
        destroy(vsphere, moref, step=step)
        raise OtherDisks(f"{plan.name}: vCenter made disks of other sizes than it was asked for", step=step)
    return Made(moref, {int(wanted["key"]): disk for wanted, disk in zip(plan.disks, made.disks, strict=True)})


def unmark(vsphere: VSphere, moref: str, text: str, *, step: str) -> None:
    """The restore is done: `text` takes the mark's place."""
    machine = vim.VirtualMachine(moref, vsphere.stub)
    spec = vim.vm.ConfigSpec(annotation=text)
    task = vsphere.call(lambda: machine.ReconfigVM_Task(spec=spec), step=step)
    vsphere.wait(task, step=step, timeout=TASK_DEADLINE)


def destroy(vsphere: VSphere, moref: str, *, step: str) -> None:
    """Destroys the VM with its disks. Raises VSphereFault, TaskTimedOut."""
    machine = vim.VirtualMachine(moref, vsphere.stub)
    task = vsphere.call(machine.Destroy_Task, step=step, repeatable=False)
    vsphere.wait(task, step=step, timeout=TASK_DEADLINE)


def marked(vsphere: VSphere, mark: str, *, step: str) -> list[tuple[str, str, str]]:
    """(reference, name, annotation) of the VMs whose annotation holds `mark`."""

    def look() -> list[tuple[str, str, str]]:
        found = [(str(vm._moId), str(vm.name), _annotation(vm)) for vm in _all(vsphere, vim.VirtualMachine)]
        return [one for one in found if mark in one[2]]

    return vsphere.call(look, step=step)


def _devices(plan: Planned, datastore: str) -> list[Any]:
    """Controllers and disks; their keys are negative: vCenter gives real ones."""
    changes: list[Any] = []
    spec = vim.vm.device.VirtualDeviceSpec
    for bus in range(-(-len(plan.disks) // PER_CONTROLLER)):
        device = _CONTROLLERS[plan.controller](key=-100 - bus, busNumber=bus, sharedBus="noSharing")
        changes.append(spec(operation="add", device=device))
    for number, disk in enumerate(plan.disks):
        bus, at = divmod(number, PER_CONTROLLER)
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=f"[{datastore}]", diskMode="persistent", thinProvisioned=True
        )
        capacity = int(disk["capacity"])
        device = vim.vm.device.VirtualDisk(
            key=-1000 - number,
            controllerKey=-100 - bus,
            unitNumber=at if at < 7 else at + 1,  # 7 is the controller's own
            capacityInKB=capacity >> 10,
            capacityInBytes=capacity,
            backing=backing,
        )
        changes.append(spec(operation="add", fileOperation="create", device=device))
    return changes


def _all(vsphere: VSphere, kind: Any) -> list[Any]:
    view = vsphere.content.viewManager.CreateContainerView(vsphere.content.rootFolder, [kind], True)
    try:
        return list(view.view)
    finally:
        view.DestroyView()


def _annotation(vm: Any) -> str:
    config = vm.config
    return str(config.annotation or "") if config is not None else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("guest")


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdigit() and int(text) > 0 else default
