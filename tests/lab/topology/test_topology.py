# SPDX-License-Identifier: MIT
"""The shipped topology and what follows from one."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fakes.core.inventory import Inventory
from firewall_rules.roles import ROLES
from lab import topology
from lab.topology import Role, Topology, interface_name


@pytest.fixture(scope="module")
def demo() -> Topology:
    return topology.load(topology.find(None))


def test_shipped_hosts(demo: Topology) -> None:
    assert list(demo.hosts) == [
        "console", "backup-server", "proxy-1", "proxy-2", "repository-1", "vcenter", "esxi-1", "esxi-2",
        "san", "win-guest", "linux-guest", "isolated-guest", "router",
    ]  # fmt: skip
    assert demo.router == "router"
    assert demo.host("isolated-guest").ip is None
    assert len({host.address.network for host in demo.hosts.values() if host.address}) == 11


def test_roles_are_spelled_as_in_the_rules() -> None:
    assert {role.value for role in Role} <= set(ROLES)


def test_addresses_by_role(demo: Topology) -> None:
    by_role = demo.addresses_by_role()
    assert by_role["proxy"] == {"proxy-1": "10.77.3.10", "proxy-2": "10.77.4.10"}
    assert by_role["vcenter"] == {"vcenter": "10.77.6.10"}
    assert "router" not in by_role
    assert "guest_isolated" not in by_role


def test_links(demo: Topology) -> None:
    links = {link.host: link for link in demo.links()}
    assert set(links) == set(demo.addresses())
    link = links["backup-server"]
    assert (str(link.host_address), str(link.router_address)) == ("10.77.2.10/24", "10.77.2.1/24")
    assert (link.host_interface, link.router_interface) == ("eth0", "backup-server")


def test_inventory(demo: Topology) -> None:
    inventory = demo.inventory()
    assert {host.name: str(host.address) for host in inventory.hosts} == {
        "esxi-1": "10.77.7.10",
        "esxi-2": "10.77.8.10",
    }
    linux, files = inventory.vm("linux-vm"), inventory.vm("files-vm")
    assert (linux.power, linux.host, [d.size >> 20 for d in linux.disks]) == ("on", "esxi-1", [512])
    assert linux.nic is not None and str(linux.nic.address) == demo.ip("linux-guest")
    assert (files.power, files.nic, [d.size >> 20 for d in files.disks]) == ("off", None, [256, 128])
    assert Inventory.model_validate(inventory.model_dump(mode="json")) == inventory


def test_uuids_are_stable(demo: Topology) -> None:
    again = topology.load(topology.find("demo"))
    assert [vm.uuid for vm in again.inventory().vms] == [vm.uuid for vm in demo.inventory().vms]


def test_guest_of_vm(demo: Topology) -> None:
    vm = demo.vm_of_guest("linux-guest")
    assert vm is not None and vm.name == "linux-vm"
    assert demo.vm_of_guest("win-guest") is None
    with pytest.raises(KeyError):
        demo.vm("nobody")
    with pytest.raises(KeyError):
        demo.ip("isolated-guest")


def test_shipped_job(demo: Topology) -> None:
    (job,) = demo.backup.jobs
    assert (job.name, job.vms, job.mode, job.direction, job.guest_scripts) == (
        "demo", ["linux-vm", "files-vm"], "nbdssl", "proxy-to-repository", True,
    )  # fmt: skip


def test_dump_reads_back(demo: Topology) -> None:
    assert topology.parse(topology.dump(demo)) == demo


def test_schema_is_closed_and_names_every_role() -> None:
    schema = topology.schema()
    text = json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert all(f'"{role.value}"' in text for role in Role)
    assert set(schema["required"]) == {"name", "zones", "hosts"}


@given(st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,39}", fullmatch=True), unique=True, max_size=40))
def test_interface_names_fit_and_differ(hosts: list[str]) -> None:
    taken: set[str] = set()
    for host in hosts:
        name = interface_name(host, taken)
        assert 0 < len(name) <= 15
        assert name not in taken
        assert name not in ("lo", "all", "default")
        taken.add(name)


def test_many_hosts_of_long_names() -> None:
    text = yaml.safe_load(topology.find(None).read_text())
    for number in range(100):
        text["hosts"][f"proxy-with-a-long-name-{number}"] = {
            "role": "proxy", "zone": "backup", "address": f"10.77.{100 + number}.10/24",
        }  # fmt: skip
    links = topology.parse(yaml.safe_dump(text)).links()
    assert len({link.router_interface for link in links}) == len(links) == 111
