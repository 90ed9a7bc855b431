# SPDX-License-Identifier: MIT
"""What the engine asks of a vCenter: its inventory, snapshots, and devices of VMs.

Snapshots of the engine carry a *mark* in their description; they are found by it, never only by a remembered reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyVmomi import vim

from engine.vsphere.faults import ObjectNotFound
from engine.vsphere.objects import Disk, GuestInfo, Snapshot, VmInfo
from engine.vsphere.session import Session


class VSphere(Session):
    """A session with the calls of the sequence. Make it with `login`; end it with `logout`."""

    def vms(self, *, step: str, names: list[str] | None = None) -> list[VmInfo]:
        """All VMs, or those with the given names; in the order of their names."""

        def read() -> list[VmInfo]:
            found = self.properties(vim.VirtualMachine, ["name"])
            wanted = [obj for obj, props in found if names is None or props.get("name") in names]
            hosts = {obj._moId: str(props.get("name")) for obj, props in self.properties(vim.HostSystem, ["name"])}
            return sorted((self._vm(obj, hosts) for obj in wanted), key=lambda vm: vm.name)

        return self.call(read, step=step)

    def find_vm(self, name: str, *, step: str) -> VmInfo:
        """The VM of that name. Raises ObjectNotFound (also when two have it)."""
        found = self.vms(step=step, names=[name])
        if len(found) != 1:
            raise ObjectNotFound(
                f"{self.name}: {'no VM' if not found else f'{len(found)} VMs'} with the name {name}", **self.where(step)
            )
        return found[0]

    # Snapshots

    def create_snapshot(
        self, vm: str, name: str, description: str, *, step: str, timeout: float, quiesce: bool = False
    ) -> Snapshot:
        """Creates a snapshot without memory and waits for it. Raises VSphereFault, TaskTimedOut."""
        machine = vim.VirtualMachine(vm, self.stub)
        task = self.call(
            lambda: machine.CreateSnapshot_Task(name=name, description=description, memory=False, quiesce=quiesce),
            step=step,
            repeatable=False,
        )
        result = self.wait(task, step=step, timeout=timeout)
        for snapshot in self.snapshots(vm, step=step):
            if snapshot.moref == result._moId:
                return snapshot
        raise ObjectNotFound(f"{self.name}: the new snapshot {result._moId} is not in the tree", **self.where(step))

    def snapshots(self, vm: str, *, step: str) -> list[Snapshot]:
        """All snapshots of a VM, parents first."""
        machine = vim.VirtualMachine(vm, self.stub)

        def walk(nodes: Any) -> Iterator[Snapshot]:
            for node in nodes or []:
                yield Snapshot(node.snapshot._moId, vm, node.name, int(node.id or 0), node.description or "")
                yield from walk(node.childSnapshotList)

        def read() -> list[Snapshot]:
            tree = self.of(machine, ["snapshot"]).get("snapshot")
            return list(walk(tree.rootSnapshotList)) if tree is not None else []

        return self.call(read, step=step)

    def own_snapshots(self, mark: str, *, step: str, vm_name: str | None = None) -> list[Snapshot]:
        """Snapshots whose description holds `mark`, of one VM or of all."""
        found = []
        for moref, name in self.call(
            lambda: [(obj._moId, props.get("name")) for obj, props in self.properties(vim.VirtualMachine, ["name"])],
            step=step,
        ):
            if vm_name is None or name == vm_name:
                found += [s for s in self.snapshots(moref, step=step) if mark in s.description]
        return found

    def remove_snapshot(self, moref: str, *, step: str, timeout: float) -> None:
        """Commits (removes) a snapshot, not its children, and waits. A snapshot that is gone already is fine."""
        snapshot = vim.vm.Snapshot(moref, self.stub)
        try:
            task = self.call(
                lambda: snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True),
                step=step,
                repeatable=False,
            )
            self.wait(task, step=step, timeout=timeout)
        except ObjectNotFound:
            return

    # Devices and storage (HotAdd and Direct SAN)

    def find_by_uuid(self, uuid: str, *, step: str) -> str | None:
        """Reference of the VM with that BIOS UUID; None when there is none."""
        index = self.content.searchIndex
        found = self.call(lambda: index.FindByUuid(uuid=uuid, vmSearch=True, instanceUuid=False), step=step)
        return str(found._moId) if found is not None else None

    def devices(self, vm: str, *, step: str) -> list[Any]:
        """The VM's virtual devices (pyVmomi objects)."""
        machine = vim.VirtualMachine(vm, self.stub)
        return list(
            self.call(
                lambda: self.of(machine, ["config.hardware.device"]).get("config.hardware.device") or [], step=step
            )
        )

    def snapshot_devices(self, snapshot: str, *, step: str) -> list[Any]:
        """The virtual devices as the snapshot's configuration holds them."""
        target = vim.vm.Snapshot(snapshot, self.stub)
        return list(
            self.call(
                lambda: self.of(target, ["config.hardware.device"]).get("config.hardware.device") or [], step=step
            )
        )

    def vmx_path(self, vm: str, *, step: str) -> str:
        """Datastore path of the VM's configuration file."""
        machine = vim.VirtualMachine(vm, self.stub)
        return str(
            self.call(
                lambda: self.of(machine, ["config.files.vmPathName"]).get("config.files.vmPathName") or "", step=step
            )
        )

    def reconfigure(self, vm: str, changes: list[Any], *, step: str, timeout: float) -> None:
        """Adds, removes or edits devices (`VirtualDeviceSpec`) and waits. Raises VSphereFault, TaskTimedOut."""
        machine = vim.VirtualMachine(vm, self.stub)
        spec = vim.vm.ConfigSpec(deviceChange=changes)
        task = self.call(lambda: machine.ReconfigVM_Task(spec=spec), step=step, repeatable=False)
        self.wait(task, step=step, timeout=timeout)

    def datastore_luns(self, vm: str, datastore: str, *, step: str) -> list[str]:
        """Canonical names (`naa.…`) of the LUNs of the VM's datastore of that name; empty when it is not on LUNs."""
        machine = vim.VirtualMachine(vm, self.stub)

        def read() -> list[str]:
            for store in self.of(machine, ["datastore"]).get("datastore") or []:
                props = self.of(store, ["name", "info"])
                if props.get("name") == datastore:
                    vmfs = getattr(props.get("info"), "vmfs", None)
                    return [str(extent.diskName) for extent in getattr(vmfs, "extent", None) or []]
            return []

        return self.call(read, step=step)

    def _vm(self, obj: Any, hosts: dict[str, str]) -> VmInfo:
        paths = [
            "name", "config.uuid", "config.files.vmPathName", "config.hardware.device", "runtime.host",
            "runtime.powerState", "guest.toolsRunningStatus", "guest.guestFamily", "guest.hostName", "guest.ipAddress",
            "guest.net",
        ]  # fmt: skip
        props = self.of(obj, paths)
        disks = tuple(
            _disk(d) for d in props.get("config.hardware.device") or [] if isinstance(d, vim.vm.device.VirtualDisk)
        )
        host = props.get("runtime.host")
        return VmInfo(
            moref=obj._moId,
            name=str(props.get("name")),
            uuid=str(props.get("config.uuid") or ""),
            vmx=str(props.get("config.files.vmPathName") or ""),
            powered_on=str(props.get("runtime.powerState")) == "poweredOn",
            host=hosts.get(host._moId, "") if host is not None else "",
            disks=disks,
            guest=GuestInfo(
                tools_running=props.get("guest.toolsRunningStatus") == "guestToolsRunning",
                family=props.get("guest.guestFamily"),
                hostname=props.get("guest.hostName"),
                address=_ipv4(props.get("guest.ipAddress"), props.get("guest.net")),
            ),
        )


def _disk(device: Any) -> Disk:
    size = getattr(device, "capacityInBytes", None)
    capacity = int(size) if size else int(device.capacityInKB) * 1024
    label = str(device.deviceInfo.label) if device.deviceInfo is not None else f"disk {device.key}"
    return Disk(int(device.key), label, str(getattr(device.backing, "fileName", "") or ""), capacity)


def _ipv4(first: str | None, nics: Any) -> str | None:
    addresses = [first] if first else []
    addresses += [a for nic in nics or [] for a in nic.ipAddress or []]
    return next((a for a in addresses if a and ":" not in a), None)
