# SPDX-License-Identifier: MIT
"""Who is who on the measured network: an address to a host, its role and its network. Made from the run's topology."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from lab.topology import Topology

BACKUP_ROLES = frozenset(
    {"console", "backup_server", "config_db", "proxy", "repository", "gateway", "gip", "mount_server", "log_server"}
)
"""Backup components: who must never be called by what they protect (invariant I2)."""

PROTECTED_ROLES = frozenset({"guest_windows", "guest_linux", "guest_isolated", "esxi", "vcenter", "san", "nfs_filer"})


@dataclass(frozen=True, slots=True)
class Party:
    """A host with a network."""

    name: str
    role: str
    address: str
    network: IPv4Network

    @property
    def is_guest(self) -> bool:
        """Whether it is the inside of a virtual machine."""
        return self.role.startswith("guest_")


@dataclass(frozen=True, slots=True)
class World:
    """All parties, for each guest host the VM that it is the inside of, and the names of all VMs."""

    parties: tuple[Party, ...]
    vm_of_guest: dict[str, str]
    vms: tuple[str, ...] = ()

    @classmethod
    def of(cls, topology: Topology) -> World:
        """The world of a checked topology; hosts without a network are left out."""
        parties = tuple(
            Party(name, host.role.value, str(host.ip), host.address.network)
            for name, host in topology.hosts.items()
            if host.address is not None and name != topology.router
        )
        guests = {vm.guest: vm.name for vm in topology.vsphere.vms if vm.guest}
        return cls(parties, guests, tuple(vm.name for vm in topology.vsphere.vms))

    def at(self, address: str) -> Party | None:
        """The party that has this address."""
        return next((p for p in self.parties if p.address == address), None)

    def named(self, name: str) -> Party | None:
        """The party of this name."""
        return next((p for p in self.parties if p.name == name), None)

    def name(self, address: str) -> str:
        """Its name, or the address itself when nobody has it."""
        party = self.at(address)
        return party.name if party else address

    def with_role(self, roles: Iterable[str]) -> list[Party]:
        """Parties of these roles, in file order."""
        wanted = set(roles)
        return [p for p in self.parties if p.role in wanted]

    def guest_at(self, address: str) -> Party | None:
        """The guest whose network holds this address (not only the guest's own address)."""
        ip = IPv4Address(address)
        return next((p for p in self.parties if p.is_guest and ip in p.network), None)
