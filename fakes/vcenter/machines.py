# SPDX-License-Identifier: MIT
"""VMs that clients make and destroy: in vcsim and in the storage, with empty disks that a read-write ticket can fill.

A VM is the storage's as soon as its datastore is; the gateway adopts what the storage holds beyond its inventory, so
that restored VMs outlive vcsim and the gateway. What the storage does not keep (the host, NICs, the kind of controller)
is a guess then: the first host that mounts the datastore, none, paravirtual.
"""

from __future__ import annotations

import contextlib
import logging
import re
import uuid
from dataclasses import dataclass
from typing import Any, Literal

from pyVmomi import vim, vmodl

from fakes.core.fabric import FabricError
from fakes.core.inventory import Datastore, Inventory, VirtualMachine
from fakes.vcenter import builder, devices, reports, soap
from fakes.vcenter.attachments import CONTROLLERS, Attachments, free_unit, units
from fakes.vcenter.calls import Context, Handler, SoapFault, invalid_argument, not_found
from fakes.vcenter.http import Reply
from fakes.vcenter.machine import Machine, disk_uuid, machine
from fakes.vcenter.power import Power
from fakes.vcenter.running import Owner, Runner, quietly
from fakes.vcenter.storage import Storage, file_fault
from fakes.vcenter.world import World

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PATH = re.compile(r"\[([^\]]+)\]\s*(?:([^/]+)/)?(.*)")
_SETTING = re.compile(r'^\s*([\w.:]+)\s*=\s*"([^"]*)"\s*$', re.MULTILINE)


@dataclass
class Order:
    """A VM that a client wants: what the storage and vcsim are told."""

    vm: VirtualMachine
    folder: str
    disks: list[dict[str, Any]]
    spec: Any
    host: Any


class Machines:
    """CreateVM_Task, Destroy_Task, UnregisterVM, RegisterVM_Task on a vCenter; and adoption. `vms` is the gateway's table of VMs."""

    def __init__(
        self,
        owner: Owner,
        runner: Runner,
        power: Power,
        attachments: Attachments,
        inventory: Inventory | None,
        vms: dict[str, VirtualMachine],
    ) -> None:
        self._owner = owner
        self._runner = runner
        self._power = power
        self._attachments = attachments
        self._inventory = inventory
        self._vms = vms
        self._unregistered: dict[str, VirtualMachine] = {}

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return {
            "CreateVM_Task": self.create,
            "Destroy_Task": self.destroy,
            "UnregisterVM": self.unregister,
            "RegisterVM_Task": self.register,
        }

    # -- adoption

    async def adopt(self) -> None:
        """Takes VMs into the table that the storage holds and the inventory does not name. Raises FabricError."""
        storage, inventory = self._owner.storage, self._inventory
        if storage is None or inventory is None:
            return
        for store in inventory.datastores:
            for raw in await storage.vms(store.name):
                if raw["vm"] not in self._vms and store.hosts:
                    self._vms[raw["vm"]] = await _read(storage, raw, store.name, store.hosts[0])
                    _log.info("%s: made by a client, adopted from %s", raw["vm"], store.name)

    # -- creation

    async def create(self, context: Context) -> Reply:
        """CreateVM_Task(config, pool, host?), on a folder."""
        values = soap.arguments(context.raw)
        if values.get("config") is None:
            raise invalid_argument("config")
        await context.require_login()
        world, pool = context.world, values.get("pool")
        order = self.plan(world, values["config"], values.get("host"))
        if order is None:
            return await context.forward()
        folder = world.admin.object("Folder", context.call.this_id)
        if pool is None:
            raise invalid_argument("pool")
        for reference in (folder, pool):
            try:
                await world.admin.properties(reference, "name")
            except vmodl.fault.ManagedObjectNotFound as exc:
                raise not_found(reference) from exc

        async def work() -> tuple[Any, Any]:
            return await self.make(world, order, folder, pool)

        return await self._runner.run(context, folder, work, {"host": order.vm.host}, name=order.vm.name)

    def plan(self, world: World, spec: Any, host: Any) -> Order | None:
        """What a ConfigSpec asks the storage for; None when its datastore is not the storage's. Raises SoapFault."""
        match = _PATH.fullmatch(spec.files.vmPathName or "") if spec.files else None
        stores = self._inventory.datastores if self._inventory is not None else []
        if self._owner.storage is None or match is None or match[1] not in {store.name for store in stores}:
            return None
        return self._order(world, spec, match, host)

    def _order(self, world: World, spec: Any, where: re.Match[str], host: Any) -> Order:
        inventory = self._inventory
        assert inventory is not None
        name = spec.name or ""
        if not _NAME.fullmatch(name):
            raise SoapFault(vim.fault.InvalidName(name=name), "Names here have letters, digits, '.', '_' and '-' only.")
        if name in self._vms:
            taken = world.places.vms.get(name)
            raise SoapFault(vim.fault.DuplicateName(name=name, object=taken), f"The name '{name}' already exists.")
        store = next(s for s in inventory.datastores if s.name == where[1])
        chosen = _chosen(world, store, host)
        folder = where[2] or name
        vm = VirtualMachine.model_construct(
            name=name,
            host=chosen,
            datastore=store.name,
            power="off",
            os=_family(spec.guestId or ""),
            memory_mib=int(spec.memoryMB or 32),
            cpus=int(spec.numCPUs or 1),
            nic=None,
            disks=[],
            uuid=str(uuid.UUID(spec.uuid)) if spec.uuid else str(uuid.uuid4()),
        )
        disks = _disks(vm, folder, spec)
        spec.files.vmPathName = f"[{store.name}] {folder}/{where[3] or name + '.vmx'}"
        spec.uuid = vm.uuid
        spec.instanceUuid = spec.instanceUuid or builder.instance_uuid(vm)
        spec.guestId = spec.guestId or builder.GUEST_IDS[vm.os]
        return Order(vm, folder, disks, spec, world.places.hosts[chosen])

    async def make(self, world: World, order: Order, folder: Any, pool: Any) -> tuple[Any, Any]:
        """Makes a VM, the lock of its name being held; its reference, and vcsim's task."""
        storage, vm = self._owner.storage, order.vm
        assert storage is not None
        if vm.name in self._vms:  # somebody was quicker
            raise vim.fault.DuplicateName(name=vm.name, object=world.places.vms.get(vm.name))
        text = builder.vmx(_planned(vm, order))
        try:
            state = await storage.create(vm, order.folder, order.disks, text)
        except FabricError as exc:
            raise file_fault(exc, order.spec.files.vmPathName, vm.datastore) from exc
        made = None
        try:
            if order.spec.changeTrackingEnabled:
                state = await storage.track(vm, True)
                options = builder.tracking_options(state.machine, on=True)
                order.spec.extraConfig = [*(order.spec.extraConfig or []), *options]
            task = await world.admin.call(folder, "CreateVM_Task", config=order.spec, pool=pool, host=order.host)
            made = await quietly(world, task)
            await devices.assign(world, made, reports.guest_defaults(vm))
            await devices.set_chains(world, made, state.chains, state.change_ids)
        except BaseException:
            if made is not None:
                await quietly(world, await world.admin.call(made, "Destroy_Task"))
            await storage.delete(vm)
            raise
        world.places.vms[vm.name] = made
        self._owner.remember(state.machine)
        return made, task

    # -- destruction

    async def destroy(self, context: Context) -> Reply:
        """Destroy_Task, on a VM that the storage holds: what is attached to it is detached, then all of it goes."""
        vm = context.world.admin.object(context.call.this_type, context.call.this_id)
        managed = self._runner.managed(context.world, vm) if context.call.this_type == "VirtualMachine" else None
        if managed is None:
            await self._make_plain(context, vm)
            return await self._power.exclusive(context)
        detail: dict[str, Any] = {}

        async def work() -> tuple[Any, Any]:
            return None, await self.destroy_stored(context.world, managed, vm, detail)

        return await self._runner.run(context, vm, work, detail)

    @staticmethod
    async def _make_plain(context: Context, vm: Any) -> None:
        """A template is made a VM before it goes: vcsim would leave its reference in the pool, and scans would fail."""
        await context.require_login()
        if context.call.this_type == "VirtualMachine":
            admin = context.world.admin
            with contextlib.suppress(vmodl.fault.ManagedObjectNotFound):
                if (await admin.properties(vm, "config.template")).get("config.template"):
                    await admin.call(vm, "MarkAsVirtualMachine", pool=context.world.places.pool)

    async def destroy_stored(self, world: World, vm: VirtualMachine, reference: Any, detail: dict[str, Any]) -> Any:
        """Destroys a VM, its lock being held; returns vcsim's task."""
        storage = self._owner.storage
        assert storage is not None
        power = (await world.admin.properties(reference, "runtime.powerState")).get("runtime.powerState")
        if power != "poweredOff":
            raise vim.fault.InvalidPowerState(existingState=power, requestedState="poweredOff")
        held = await self._attachments.of(vm.name)
        await storage.delete(vm)  # it may refuse, so it comes first
        for each in held:
            await storage.detach(each)
            self._attachments.forget(each)
        detail["detached"] = [each.name for each in held]
        self._vms.pop(vm.name, None)
        world.places.vms.pop(vm.name, None)
        world.snapshots.pop(vm.name, None)
        prefix = tuple(f"/folder/{file}" for file in (f"{vm.name}/",))
        for target in [t for t in world.stubs if t.startswith(prefix)]:
            del world.stubs[target]
        task = await world.admin.call(reference, "Destroy_Task")
        await quietly(world, task)
        return task

    # -- registration

    async def unregister(self, context: Context) -> Reply:
        """UnregisterVM: the storage keeps the VM, vCenter forgets it."""
        world = context.world
        vm = world.admin.object("VirtualMachine", context.call.this_id)
        managed = self._runner.managed(world, vm)
        if managed is None:
            return await context.forward()
        async with self._owner.lock(managed.name):
            reply = await context.forward()
            if reply.status == 200:
                self._unregistered[managed.name] = self._vms.pop(managed.name)
                world.places.vms.pop(managed.name, None)
                world.snapshots.pop(managed.name, None)
        return reply

    async def register(self, context: Context) -> Reply:
        """RegisterVM_Task(path, name?, asTemplate, pool?, host?), on a folder: a VM that the storage holds is shown again."""
        values, world = soap.arguments(context.raw), context.world
        match = _PATH.fullmatch(str(values.get("path") or ""))
        stores = self._inventory.datastores if self._inventory is not None else []
        store = next((each for each in stores if match is not None and each.name == match[1]), None)
        storage = self._owner.storage
        if match is None or store is None or storage is None:
            return await context.forward()
        await context.require_login()
        chosen = _chosen(world, store, values.get("host"))  # vcsim ends at another (vcsim reference section 19.18)
        try:
            raw = next((each for each in await storage.vms(store.name) if each["folder"] == match[2]), None)
            if raw is None:
                return await context.forward()
            name = str(raw["vm"])
            if name in self._vms:
                raise SoapFault(
                    vim.fault.AlreadyExists(name=match[0]), f"The virtual machine {name} is registered already."
                )
            if values.get("asTemplate"):
                raise SoapFault(vmodl.fault.NotSupported(), "Templates can not be registered here.")
            if (known := self._unregistered.get(name)) is not None:
                vm: VirtualMachine = known.model_copy(update={"host": chosen, "power": "off"})
            else:
                vm = await _read(storage, raw, store.name, chosen)
        except FabricError as exc:
            raise SoapFault(file_fault(exc, match[0], store.name)) from exc
        folder = world.admin.object("Folder", context.call.this_id)

        async def work() -> tuple[Any, Any]:
            if name in self._vms:  # somebody was quicker
                raise vim.fault.AlreadyExists(name=match[0])
            await devices.clear_stubs(world, vm)
            reference = await self._owner.show(world, vm)
            self._unregistered.pop(name, None)
            if values.get("name") not in (None, "", name):
                await quietly(world, await world.admin.call(reference, "Rename_Task", newName=values["name"]))
            return reference, None

        return await self._runner.run(context, folder, work, {"host": chosen}, name=name)


def _chosen(world: World, store: Datastore, host: Any) -> str:
    """Name of the host that is asked for, or of the first that mounts the datastore. Raises SoapFault(InvalidDatastore)."""
    name = world.places.host_name(host._moId) if host is not None else next(iter(store.hosts), None)
    if name is None or name not in store.hosts:
        raise not_mounted(world, store.name)
    return name


async def _read(storage: Storage, raw: dict[str, Any], datastore: str, host: str) -> VirtualMachine:
    """A VM of the storage's that the inventory does not name, by its `.vmx`. Raises FabricError."""
    text = await storage.read_text(datastore, f"{raw['folder']}/{raw['vm']}.vmx")
    return _described(raw, datastore, host, (text or b"").decode("utf-8", "replace"))


def not_mounted(world: World, datastore: str) -> SoapFault:
    """The fault of a VM on a host that lacks its datastore."""
    value = vim.fault.InvalidDatastore(name=datastore, datastore=world.places.datastores.get(datastore))
    return SoapFault(value, f"Datastore '{datastore}': the host does not mount it.")


def _family(guest_id: str) -> Literal["linux", "windows", "other"]:
    if guest_id.lower().startswith("win"):
        return "windows"
    return "other" if not guest_id or guest_id.lower().startswith("other") else "linux"


def _disks(vm: VirtualMachine, folder: str, spec: Any) -> list[dict[str, Any]]:
    """Gives controllers and disks of a spec their keys, labels, units, files; returns the disks for the storage."""
    changes = [c for c in spec.deviceChange or [] if c.operation == "add"]
    controllers: dict[int, int] = {}
    shown: list[Any] = []
    for change in changes:
        device = change.device
        if isinstance(device, vim.vm.device.VirtualSCSIController):
            new = builder.CONTROLLER + int(device.busNumber or 0)
            controllers[device.key] = device.key = new
            shown.append(device)
        elif isinstance(device, CONTROLLERS):
            controllers[device.key] = device.key
            shown.append(device)
    made: list[dict[str, Any]] = []
    for index, change in enumerate(spec.deviceChange or []):
        device = change.device
        if not isinstance(device, vim.vm.device.VirtualDisk) or device.backing is None:
            continue
        if change.operation != "add" or change.fileOperation != "create":
            raise SoapFault(vmodl.fault.NotSupported(), "A new virtual machine has new disks only, here.")
        where = f"deviceChange[{index}].device"
        if device.controllerKey not in controllers:
            key = device.controllerKey or 0
            value = vim.fault.InvalidController(deviceIndex=index, property=f"{where}.controllerKey", controllerKey=key)
            raise SoapFault(value, "The disk's controller is not among the devices.")
        device.controllerKey = controllers[device.controllerKey]
        taken = units(shown, device.controllerKey)
        if device.unitNumber is None or device.unitNumber < 0:
            device.unitNumber = free_unit(taken)
        if device.unitNumber in taken or device.unitNumber == 7:
            value = vim.fault.InvalidDeviceSpec(deviceIndex=index, property=f"{where}.unitNumber")
            raise SoapFault(value, "The unit is taken.")
        size = device.capacityInBytes or (device.capacityInKB or 0) << 10
        if size <= 0:
            value = vim.fault.InvalidDeviceSpec(deviceIndex=index, property=f"{where}.capacityInKB")
            raise SoapFault(value, "The disk has no capacity.")
        number = len(made)
        device.key = builder.FIRST_DISK + number
        label = f"Hard disk {number + 1}"
        sent = _PATH.fullmatch(device.backing.fileName or "")
        file = f"{sent[2]}/{sent[3]}" if sent and sent[2] and sent[3].endswith(".vmdk") else ""
        file = file or (f"{folder}/{vm.name}.vmdk" if number == 0 else f"{folder}/{vm.name}_{number}.vmdk")
        device.deviceInfo = vim.Description(label=label, summary=f"{size >> 10:,} KB")
        device.capacityInBytes, device.capacityInKB = size, size >> 10
        device.backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=f"[{vm.datastore}] {file}",
            diskMode=device.backing.diskMode or "persistent",
            thinProvisioned=bool(getattr(device.backing, "thinProvisioned", True)),
            writeThrough=False,
            uuid=disk_uuid(vm.uuid, device.key),
        )
        shown.append(device)
        made.append({"key": device.key, "label": label, "size": size, "file": file, "contents": "empty"})
    return made


def _planned(vm: VirtualMachine, order: Order) -> Machine:
    """The VM as it will be, for its `.vmx`."""
    raw = {"disks": [{**disk, "chain": [disk["file"]]} for disk in order.disks], "power": "off", "folder": order.folder}
    return machine(vm, raw)


def _described(raw: dict[str, Any], datastore: str, host: str, text: str) -> Machine:
    """A VM of which only the storage knows, with what its `.vmx` says."""
    settings = dict(_SETTING.findall(text))
    memory, cpus = settings.get("memSize", ""), settings.get("numvcpus", "")
    vm = VirtualMachine.model_construct(
        name=raw["vm"],
        host=host,
        datastore=datastore,
        power="off",
        os=_family(settings.get("guestOS", "")),
        memory_mib=int(memory) if memory.isdigit() else 512,
        cpus=int(cpus) if cpus.isdigit() else 1,
        nic=None,
        disks=[],
        uuid=str(uuid.UUID(raw["uuid"])),
    )
    return machine(vm, raw)
