# SPDX-License-Identifier: MIT
"""What only the whole file can show: overlapping subnets, duplicate addresses, references to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lab.topology.model import Host, Role, TopologyModel, Worker

Loc = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: where in the document, and what a reader should know."""

    loc: Loc
    text: str


def problems(topology: TopologyModel) -> list[Problem]:
    """Every problem of a topology whose shape is right; empty when it can be built."""
    return [*_hosts(topology), *_addresses(topology), *_vsphere(topology), *_array(topology), *_backup(topology)]


def _hosts(topology: TopologyModel) -> Iterator[Problem]:
    routers = [name for name, host in topology.hosts.items() if host.role is Role.ROUTER]
    if len(routers) != 1:
        yield Problem(("hosts",), f"exactly one host must have the role router, found {_list(routers)}")
    databases = [name for name, host in topology.hosts.items() if host.role is Role.CONFIG_DB]
    if len(databases) > 1:
        yield Problem(("hosts", databases[1]), f"{databases[0]} is the config_db already: at most one")
    for name, host in topology.hosts.items():
        here: Loc = ("hosts", name)
        if host.zone not in topology.zones:
            yield Problem((*here, "zone"), f"unknown zone {host.zone}; the zones are {_list(topology.zones)}")
        if host.role is Role.ROUTER and host.address:
            yield Problem(
                (*here, "address"), "the router takes the first address of each subnet and has none of its own"
            )
        if host.role is Role.GUEST_ISOLATED and host.address:
            yield Problem((*here, "address"), "a guest_isolated host has no network")
        if host.address is None and host.role not in (Role.ROUTER, Role.GUEST_ISOLATED):
            yield Problem(here, f"a host with the role {host.role} needs an address")


def _addresses(topology: TopologyModel) -> Iterator[Problem]:
    seen: list[tuple[str, Host]] = []
    for name, host in topology.hosts.items():
        if host.address is None:
            continue
        here: Loc = ("hosts", name, "address")
        if not host.address.network.subnet_of(topology.network):
            yield Problem(here, f"{host.address} lies outside the network {topology.network}")
        for other, earlier in seen:
            assert earlier.address is not None
            if earlier.address.ip == host.address.ip:
                yield Problem(here, f"{host.address.ip} is the address of {other} already")
                break
            if earlier.address.network.overlaps(host.address.network):
                yield Problem(
                    here,
                    f"subnet {host.address.network} overlaps {earlier.address.network} of {other}: each host has its own",
                )
                break
        seen.append((name, host))


def _vsphere(topology: TopologyModel) -> Iterator[Problem]:
    hosts = topology.hosts
    esxi = [name for name, host in hosts.items() if host.role is Role.ESXI]
    stores = {store.name: store for store in topology.vsphere.datastores}
    for index, store in enumerate(topology.vsphere.datastores):
        here: Loc = ("vsphere", "datastores", index)
        if [s.name for s in topology.vsphere.datastores].index(store.name) != index:
            yield Problem((*here, "name"), f"a datastore is called {store.name} already")
        for position, name in enumerate(store.hosts):
            if name not in esxi:
                yield Problem(
                    (*here, "hosts", position), f"{_not_a(hosts, name, 'esxi')}; the esxi hosts are {_list(esxi)}"
                )
    guests: dict[str, str] = {}
    for index, vm in enumerate(topology.vsphere.vms):
        here = ("vsphere", "vms", index)
        if [v.name for v in topology.vsphere.vms].index(vm.name) != index:
            yield Problem((*here, "name"), f"a VM is called {vm.name} already")
        if vm.host not in esxi:
            yield Problem((*here, "host"), f"{_not_a(hosts, vm.host, 'esxi')}; the esxi hosts are {_list(esxi)}")
        if vm.datastore not in stores:
            yield Problem((*here, "datastore"), f"unknown datastore {vm.datastore}; the datastores are {_list(stores)}")
        elif vm.host in esxi and vm.host not in stores[vm.datastore].hosts:
            yield Problem((*here, "datastore"), f"{vm.host} does not mount datastore {vm.datastore}")
        if vm.guest is None:
            continue
        if vm.guest not in hosts or not (hosts[vm.guest].role.is_guest or hosts[vm.guest].role is Role.PROXY):
            yield Problem((*here, "guest"), _not_a(hosts, vm.guest, "guest_… or proxy"))
        elif vm.guest in guests:
            yield Problem((*here, "guest"), f"{vm.guest} is the guest of {guests[vm.guest]} already")
        guests.setdefault(vm.guest, vm.name)
    for store in stores.values():
        used = sum(disk.size for vm in topology.vsphere.vms if vm.datastore == store.name for disk in vm.disks)
        if used > store.capacity:
            index = topology.vsphere.datastores.index(store)
            yield Problem(
                ("vsphere", "datastores", index, "capacity"),
                f"the disks on {store.name} need {used} bytes, it has {store.capacity}",
            )


def _array(topology: TopologyModel) -> Iterator[Problem]:
    if topology.array is None:
        return
    hosts = topology.hosts
    if topology.array.host not in hosts or hosts[topology.array.host].role is not Role.SAN:
        yield Problem(("array", "host"), _not_a(hosts, topology.array.host, "san"))
    for position, name in enumerate(topology.array.initiators):
        if name not in hosts or hosts[name].role is not Role.PROXY:
            yield Problem(("array", "initiators", position), _not_a(hosts, name, "proxy"))


def _backup(topology: TopologyModel) -> Iterator[Problem]:
    hosts, backup = topology.hosts, topology.backup
    for section, role, workers in (
        ("proxies", "proxy", backup.proxies),
        ("repositories", "repository", backup.repositories),
    ):
        yield from _workers(hosts, section, role, workers)
    for index, credentials in enumerate(backup.credentials):
        if credentials.host not in hosts or not hosts[credentials.host].role.is_guest:
            yield Problem(("backup", "credentials", index, "host"), _not_a(hosts, credentials.host, "guest_…"))
    vms = {vm.name: vm for vm in topology.vsphere.vms}
    signed = {credentials.host for credentials in backup.credentials}
    guests = {name for name, host in hosts.items() if host.role.is_guest}
    repositories = [worker.host for worker in backup.repositories]
    for index, job in enumerate(backup.jobs):
        here: Loc = ("backup", "jobs", index)
        if [j.name for j in backup.jobs].index(job.name) != index:
            yield Problem((*here, "name"), f"a job is called {job.name} already")
        for position, name in enumerate(job.vms):
            if name not in vms:
                yield Problem((*here, "vms", position), f"unknown VM {name}; the VMs are {_list(vms)}")
            elif job.guest_scripts and (guest := vms[name].guest) in guests and guest not in signed:
                yield Problem(
                    (*here, "guest_scripts"), f"backup.credentials has no entry for {guest}, the guest of {name}"
                )
        if job.repository is not None and job.repository not in repositories:
            yield Problem(
                (*here, "repository"), f"{job.repository} is not in backup.repositories ({_list(repositories)})"
            )
        if not backup.proxies or not repositories:
            yield Problem(here, "a job needs at least one proxy and one repository in the backup section")


def _workers(hosts: dict[str, Host], section: str, role: str, workers: list[Worker]) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, worker in enumerate(workers):
        here: Loc = ("backup", section, index, "host")
        if worker.host not in hosts or hosts[worker.host].role != role:
            yield Problem(here, _not_a(hosts, worker.host, role))
        if worker.host in seen:
            yield Problem(here, f"{worker.host} is listed twice")
        seen.add(worker.host)


def _not_a(hosts: dict[str, Host], name: str, role: str) -> str:
    if name not in hosts:
        return f"unknown host {name}"
    return f"host {name} has the role {hosts[name].role}, not {role}"


def _list(names: object) -> str:
    found = list(names)  # type: ignore[call-overload]
    return ", ".join(found) if found else "none"
