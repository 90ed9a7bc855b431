# SPDX-License-Identifier: MIT
"""The topology: hosts with role, zone and address, what vSphere shows, and what the backup engine is told.

Nouns: *host* (a network namespace behind the router), *role* (spelled as in `firewall_rules`), *zone* (a group of
hosts), *guest* (a host that is the inside of a virtual machine). These models check shapes; `lab.topology.check` checks
what only the whole file can show.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from engine.modes.names import JobMode
from fakes.core.inventory import Datastore, Disk, Name


class Role(StrEnum):
    """What a host is in the backup infrastructure (flow reference, section 1)."""

    ROUTER = "router"
    CONSOLE = "console"
    BACKUP_SERVER = "backup_server"
    CONFIG_DB = "config_db"
    PROXY = "proxy"
    REPOSITORY = "repository"
    VCENTER = "vcenter"
    ESXI = "esxi"
    SAN = "san"
    GUEST_WINDOWS = "guest_windows"
    GUEST_LINUX = "guest_linux"
    GUEST_ISOLATED = "guest_isolated"

    @property
    def is_guest(self) -> bool:
        """Whether a host of this role is the inside of a virtual machine."""
        return self.value.startswith("guest_")


def _interface(value: Any) -> Any:
    text = str(value)
    if "/" not in text:
        raise ValueError(f"{text!r} needs a prefix length, for example {text}/24")
    try:
        return IPv4Interface(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is not an IPv4 address with prefix, for example 10.77.3.10/24") from exc


def _network(value: Any) -> Any:
    try:
        return IPv4Network(str(value))
    except ValueError as exc:
        raise ValueError(f"{str(value)!r} is not an IPv4 network, for example 10.77.0.0/16") from exc


def _whole_subnet(value: IPv4Interface) -> IPv4Interface:
    network = value.network
    if network.prefixlen > 30:
        raise ValueError(f"{value} leaves no room for host and router: use a prefix of 30 or shorter")
    if value.ip in (network.network_address, network.broadcast_address):
        raise ValueError(f"{value.ip} is the network or broadcast address of {network}")
    if value.ip == network.network_address + 1:
        raise ValueError(f"{value.ip} is the router's own address in {network}")
    return value


HostName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
Address = Annotated[IPv4Interface, BeforeValidator(_interface), AfterValidator(_whole_subnet)]
Network = Annotated[IPv4Network, BeforeValidator(_network)]
Tasks = Annotated[int, Field(ge=1, le=64)]


class Model(BaseModel):
    """Strict and frozen: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Host(Model):
    """A host. Without an address it has no network at all; the gateway is the first address of its subnet."""

    role: Role
    zone: str
    address: Address | None = None

    @property
    def ip(self) -> IPv4Address | None:
        """Its address without the prefix."""
        return self.address.ip if self.address else None

    @property
    def gateway(self) -> IPv4Address | None:
        """The router's address in its subnet."""
        return self.address.network.network_address + 1 if self.address else None


class Vm(Model):
    """A virtual machine, as `fakes.core.inventory.VirtualMachine`; `guest` is the host that is its inside, if any: a guest, or
    a proxy that is itself a VM (HotAdd)."""

    name: Name
    host: HostName
    datastore: Name
    guest: HostName | None = None
    power: Literal["on", "off"] = "off"
    os: Literal["linux", "windows", "other"] = "linux"
    memory_mib: int = 512
    cpus: int = 1
    disks: list[Disk] = Field(min_length=1)
    uuid: str = ""

    @model_validator(mode="after")
    def _powered_guest(self) -> Vm:
        if self.guest and self.power == "off":
            raise ValueError("a VM with a guest host must be powered on")
        return self


class Vsphere(Model):
    """What the fake vSphere shows: `fakes.core.inventory.Inventory` without addresses; every esxi host is in it."""

    datacenter: Name = "DC1"
    cluster: Name = "Cluster1"
    username: str = "administrator@vsphere.local"
    password: str = "VMware1!"
    datastores: list[Datastore] = []
    vms: list[Vm] = []


class Array(Model):
    """The storage array that serves the datastores' LUNs over iSCSI: its host, who may log in, and with which CHAP secret."""

    host: HostName
    initiators: list[HostName] = Field(min_length=1)
    username: str = Field(default="vadplab", min_length=1)
    password: str = Field(min_length=12, max_length=16)


class Worker(Model):
    """A proxy or a repository of the engine, with its limit of concurrent tasks."""

    host: HostName
    tasks: Tasks = 2


class Credentials(Model):
    """How guest processing signs in to a guest host."""

    host: HostName
    username: str = Field(min_length=1)
    password: str = Field(min_length=1)


class Job(Model):
    """A backup job. `direction` is the way in which the data connection is opened, as of `--data-direction`."""

    name: HostName
    vms: list[Name] = Field(min_length=1)
    mode: JobMode = "nbdssl"
    guest_scripts: bool = False
    direction: Literal["proxy-to-repository", "repository-to-proxy"] = "proxy-to-repository"
    repository: HostName | None = None


class Backup(Model):
    """What the backup engine is told when the lab comes up."""

    profile: Literal["12.3"] = "12.3"
    proxies: list[Worker] = []
    repositories: list[Worker] = []
    credentials: list[Credentials] = []
    jobs: list[Job] = []


class TopologyModel(Model):
    """The file as a whole."""

    name: HostName
    network: Network = IPv4Network("10.77.0.0/16")
    zones: list[HostName] = Field(min_length=1)
    hosts: dict[HostName, Host]
    vsphere: Vsphere = Vsphere()
    array: Array | None = None
    backup: Backup = Backup()
