# SPDX-License-Identifier: MIT
"""A checked topology and what follows from it: pure functions, no privileges.

`Topology` adds to the model: addresses by role, the plan of the links, interface names, and the inventory of the fakes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from fakes.core.inventory import EsxiHost, Inventory, Nic, VirtualMachine
from lab.topology.model import Host, Role, TopologyModel, Vm

HOST_INTERFACE = "eth0"
MAX_INTERFACE_NAME = 15


@dataclass(frozen=True, slots=True)
class Link:
    """One link to the router. `host_address` and `router_address` carry the subnet's prefix."""

    host: str
    host_interface: str
    router_interface: str
    host_address: IPv4Interface
    router_address: IPv4Interface


class Topology(TopologyModel):
    """A topology that `lab.topology.load` has checked."""

    @property
    def router(self) -> str:
        """Name of the host that is the router."""
        return next(name for name, host in self.hosts.items() if host.role is Role.ROUTER)

    def host(self, name: str) -> Host:
        """The host of that name; KeyError if there is none."""
        return self.hosts[name]

    def by_role(self, role: Role | str) -> dict[str, Host]:
        """The hosts of a role, in file order."""
        return {name: host for name, host in self.hosts.items() if host.role == role}

    def ip(self, name: str) -> str:
        """The address of a host as text; KeyError if there is no such host or it has no network."""
        address = self.hosts[name].ip
        if address is None:
            raise KeyError(f"{name} has no network")
        return str(address)

    def addresses_by_role(self) -> dict[str, dict[str, str]]:
        """`{role: {host: address}}` of every host with a network; the router is no party of a rule and is left out."""
        found: dict[str, dict[str, str]] = {}
        for name, host in self.hosts.items():
            if host.ip is not None and host.role is not Role.ROUTER:
                found.setdefault(host.role.value, {})[name] = str(host.ip)
        return found

    def addresses(self) -> dict[str, str]:
        """`{host: address}` of every host with a network."""
        return {name: str(host.ip) for name, host in self.hosts.items() if host.ip is not None}

    def links(self) -> list[Link]:
        """The plan of the links, one for each host with a network, in file order."""
        taken: set[str] = set()
        plan = []
        for name, host in self.hosts.items():
            if host.address is None or host.role is Role.ROUTER:
                continue
            near = interface_name(name, taken)
            taken.add(near)
            prefix = host.address.network.prefixlen
            gateway = IPv4Interface(f"{host.gateway}/{prefix}")
            plan.append(Link(name, HOST_INTERFACE, near, host.address, gateway))
        return plan

    def vm(self, name: str) -> Vm:
        """The VM of that name; KeyError if there is none."""
        for vm in self.vsphere.vms:
            if vm.name == name:
                return vm
        raise KeyError(name)

    def vm_of_guest(self, host: str) -> Vm | None:
        """The VM whose inside is `host`."""
        return next((vm for vm in self.vsphere.vms if vm.guest == host), None)

    def inventory(self) -> Inventory:
        """What the fakes present: the vsphere section with the addresses of this topology."""
        return derive_inventory(self)


def derive_inventory(topology: TopologyModel) -> Inventory:
    """The inventory of the fakes; raises ValueError for what only the inventory's own model can refuse."""

    def nic(vm: Vm) -> Nic | None:
        guest = topology.hosts.get(vm.guest) if vm.guest else None
        return Nic(address=guest.ip) if guest and guest.ip else None

    vsphere = topology.vsphere
    return Inventory(
        datacenter=vsphere.datacenter,
        cluster=vsphere.cluster,
        username=vsphere.username,
        password=vsphere.password,
        hosts=[
            EsxiHost(name=name, address=host.ip or IPv4Address(0))
            for name, host in topology.hosts.items()
            if host.role is Role.ESXI
        ],
        datastores=vsphere.datastores,
        vms=[
            VirtualMachine(
                name=vm.name,
                host=vm.host,
                datastore=vm.datastore,
                power=vm.power,
                os=vm.os,
                memory_mib=vm.memory_mib,
                cpus=vm.cpus,
                nic=nic(vm),
                disks=vm.disks,
                uuid=vm.uuid,
            )
            for vm in vsphere.vms
        ],
    )


def interface_name(host: str, taken: set[str] | frozenset[str] = frozenset()) -> str:
    """The router's interface towards `host`: its name where that fits in 15 characters, else shortened with a digest."""
    reserved = {"lo", "all", "default"}
    if len(host) <= MAX_INTERFACE_NAME and host not in taken and host not in reserved:
        return host
    digest = hashlib.sha256(host.encode()).hexdigest()
    for size in (4, 6, 8):
        name = f"{host[: MAX_INTERFACE_NAME - size - 1]}-{digest[:size]}"
        if name not in taken:
            return name
    raise ValueError(f"no interface name is left for {host}")
