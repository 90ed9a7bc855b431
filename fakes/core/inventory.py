# SPDX-License-Identifier: MIT
"""The inventory that the fakes present: one file (YAML or JSON), read by vcenter, esxi, storage and guests alike.

Sizes are bytes, or text such as `512MiB`. Disks are keyed as vSphere does: controller 1000, device key 2000 + unit,
label `Hard disk <unit + 1>`, file `<vm>/<vm>.vmdk` for the first disk and `<vm>/<vm>_<unit>.vmdk` for the others.
"""

from __future__ import annotations

import re
import uuid
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def parse_size(value: Any) -> int:
    """Bytes from an integer or from text such as `512MiB`; raises ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"\s*(\d+)\s*([KMGT]iB|B)?\s*", str(value))
    if not match:
        raise ValueError(f"not a size: {value!r} (for example 512MiB)")
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Model(BaseModel):
    """Strict and frozen: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EsxiHost(Model):
    """An ESXi host: the name in the lab's topology, the address it has there (and in tickets)."""

    name: Name
    address: IPv4Address


class Datastore(Model):
    """A datastore and the hosts that mount it. Its capacity is the size of its (sparse) LUN."""

    name: Name
    capacity: Size
    hosts: list[Name]


class Disk(Model):
    """A virtual disk. `contents`: `guest` = the root of the VM's guest, `files` = an ext4 file system with seeded files, `empty`."""

    size: Size
    contents: Literal["guest", "files", "empty"] = "empty"
    thin: bool = True

    @model_validator(mode="after")
    def _whole_sectors(self) -> Disk:
        if self.size % 65536:
            raise ValueError("a disk's size must be a multiple of 64 KiB")
        return self


class Nic(Model):
    """The guest's address as VMware Tools would report it."""

    address: IPv4Address


class VirtualMachine(Model):
    """A virtual machine. `uuid` is its BIOS UUID (default: derived from the name, so that it is stable)."""

    name: Name
    host: Name
    datastore: Name
    power: Literal["on", "off"] = "off"
    os: Literal["linux", "windows", "other"] = "linux"
    memory_mib: int = 512
    cpus: int = 1
    nic: Nic | None = None
    disks: list[Disk]
    uuid: str = ""

    @model_validator(mode="before")
    @classmethod
    def _stable_uuid(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("uuid") and isinstance(data.get("name"), str):
            data = {**data, "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{data['name']}.vm.vadplab"))}
        return data

    def disk_key(self, index: int) -> int:
        """Device key of disk `index` (0-based)."""
        return 2000 + index

    def disk_label(self, index: int) -> str:
        """`Hard disk 1` for index 0."""
        return f"Hard disk {index + 1}"

    def disk_file(self, index: int) -> str:
        """Path below the datastore, for example `linux-vm/linux-vm.vmdk`."""
        return f"{self.name}/{self.name}.vmdk" if index == 0 else f"{self.name}/{self.name}_{index}.vmdk"

    def datastore_path(self, index: int) -> str:
        """`[datastore1] linux-vm/linux-vm.vmdk`."""
        return f"[{self.datastore}] {self.disk_file(index)}"


class Inventory(Model):
    """Everything that the fake vSphere shows."""

    datacenter: Name = "DC1"
    cluster: Name = "Cluster1"
    username: str = "administrator@vsphere.local"
    password: str = "VMware1!"
    hosts: list[EsxiHost]
    datastores: list[Datastore]
    vms: list[VirtualMachine] = []

    @model_validator(mode="after")
    def _references(self) -> Inventory:
        hosts = {h.name for h in self.hosts}
        stores = {d.name: d for d in self.datastores}
        for store in self.datastores:
            for host in store.hosts:
                if host not in hosts:
                    raise ValueError(f"datastore {store.name}: unknown host {host}")
        for vm in self.vms:
            if vm.host not in hosts:
                raise ValueError(f"vm {vm.name}: unknown host {vm.host}")
            if vm.datastore not in stores:
                raise ValueError(f"vm {vm.name}: unknown datastore {vm.datastore}")
            if vm.host not in stores[vm.datastore].hosts:
                raise ValueError(f"vm {vm.name}: host {vm.host} does not mount datastore {vm.datastore}")
            if not vm.disks:
                raise ValueError(f"vm {vm.name}: needs at least one disk")
        for kind, names in (
            ("host", [h.name for h in self.hosts]),
            ("vm", [v.name for v in self.vms]),
            ("datastore", list(stores)),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"two {kind}s have the same name")
        return self

    def vm(self, name: str) -> VirtualMachine:
        """The VM of that name; KeyError if there is none."""
        for vm in self.vms:
            if vm.name == name:
                return vm
        raise KeyError(name)


def load(path: Path) -> Inventory:
    """Reads an inventory file; raises ValueError (pydantic's or YAML's text) when it is wrong."""
    return Inventory.model_validate(yaml.safe_load(path.read_text()))
