# SPDX-License-Identifier: MIT
"""What the engine knows of vSphere's objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Disk:
    """A virtual disk: device key, label, datastore path `[ds] folder/x.vmdk`, capacity in bytes."""

    key: int
    label: str
    path: str
    capacity: int


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """What VMware Tools report: family (`linuxGuest`, `windowsGuest`, ...), host name, first IPv4 address."""

    tools_running: bool
    family: str | None
    hostname: str | None
    address: str | None


@dataclass(frozen=True, slots=True)
class VmInfo:
    """A virtual machine. `vmx` is its configuration file's datastore path, `host` the name of its ESXi host."""

    moref: str
    name: str
    uuid: str
    vmx: str
    powered_on: bool
    host: str
    disks: tuple[Disk, ...]
    guest: GuestInfo


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot: its reference, the VM's reference, name, number, description."""

    moref: str
    vm: str
    name: str
    number: int
    description: str
