# SPDX-License-Identifier: MIT
"""Names in a world: a policy speaks of roles, an operator of hosts or roles, a packet of addresses.

A world is `Addresses`: {role: {host: IPv4 address}}. A name may be a role and a host at once (`vcenter`); it then means
both.
"""

from __future__ import annotations

from collections.abc import Iterable

from firewall_rules import roles
from firewall_rules.errors import UnknownEndpoint
from firewall_rules.model import Addresses


def hosts_of(name: str, addresses: Addresses) -> dict[str, str]:
    """{host: address} of a role, a host or `any`; empty for a role that no host has.

    Raises:
        UnknownEndpoint: the name is neither.
    """
    found: dict[str, str] = dict(addresses.get(name, {}))
    for members in addresses.values():
        if name == roles.ANY:
            found.update(members)
        elif name in members:
            found[name] = members[name]
    if not found and not roles.known(name):
        hosts = sorted({host for members in addresses.values() for host in members})
        near = f"hosts with an address are {', '.join(hosts)}" if hosts else "this world has no hosts"
        raise UnknownEndpoint(
            f"{name!r} is neither a host nor a role; {near}; roles among them: {', '.join(addresses)}"
        )
    return found


def roles_of(name: str, addresses: Addresses) -> frozenset[str]:
    """The roles of a host; of a role, itself.

    Raises:
        UnknownEndpoint: the name is neither.
    """
    found = {role for role, members in addresses.items() if name in members}
    if not found:
        hosts_of(name, addresses)
        found = {name}
    return frozenset(found)


def addresses_of(names: Iterable[str], addresses: Addresses) -> tuple[str, ...] | None:
    """Sorted addresses that the names stand for; None for `any`, that is, no restriction.

    Raises:
        UnknownEndpoint: one of the names is neither host nor role.
    """
    found: set[str] = set()
    for name in names:
        if name == roles.ANY:
            return None
        found.update(hosts_of(name, addresses).values())
    return tuple(sorted(found, key=lambda text: tuple(int(part) for part in text.split("."))))
