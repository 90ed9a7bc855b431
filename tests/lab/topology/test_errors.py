# SPDX-License-Identifier: MIT
"""Broken topologies: each mistake gives exactly the lines that `errors.golden` holds for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lab.errors import TopologyInvalid
from lab.topology import find, load, parse

SHIPPED = find(None).read_text()
GOLDEN: dict[str, str] = yaml.safe_load((Path(__file__).parent / "errors.golden.yaml").read_text())

# name of the mistake: (text in the shipped file, what stands there instead)
MISTAKES: dict[str, tuple[str, str]] = {
    "address used twice": ("10.77.4.10/24", "10.77.3.10/24"),
    "subnets overlap": ("10.77.4.10/24", "10.77.3.130/25"),
    "address outside the network": ("10.77.9.10/24", "10.99.9.10/24"),
    "address without prefix": ("10.77.4.10/24", "10.77.4.10"),
    "no address at all": ("10.77.4.10/24", "10.77.400.10/24"),
    "the router's address": ("10.77.4.10/24", "10.77.4.1/24"),
    "broadcast address": ("10.77.4.10/24", "10.77.4.255/24"),
    "subnet too small": ("10.77.4.10/24", "10.77.4.10/31"),
    "network is none": ("network: 10.77.0.0/16", "network: 10.77.0.0.0/16"),
    "unknown role": ("role: san,", "role: sann,"),
    "unknown zone": ("zone: storage", "zone: stor"),
    "host without address": ("role: san, zone: storage, address: 10.77.9.10/24", "role: san, zone: storage"),
    "router with address": ("{role: router, zone: core}", "{role: router, zone: core, address: 10.77.99.10/24}"),
    "isolated guest with address": (
        "{role: guest_isolated, zone: guests}",
        "{role: guest_isolated, zone: guests, address: 10.77.12.10/24}",
    ),
    "no router": ("role: router, zone: core", "role: guest_isolated, zone: core"),
    "two routers": ("{role: guest_isolated, zone: guests}", "{role: router, zone: core}"),
    "unknown key": ('profile: "12.3"', 'porfile: "12.3"'),
    "key twice": ("  proxy-2: {role", "  proxy-1: {role"),
    "bad host name": ("  san: {role", "  SAN_1: {role"),
    "missing key": ("role: san, zone: storage, ", "role: san, "),
    "VM on unknown host": (
        "host: esxi-1\n      datastore: datastore1\n      guest",
        "host: esxi-9\n      datastore: datastore1\n      guest",
    ),
    "VM on a proxy": (
        "host: esxi-1\n      datastore: datastore1\n      guest",
        "host: proxy-1\n      datastore: datastore1\n      guest",
    ),
    "VM on unknown datastore": ("datastore: datastore1\n      guest", "datastore: datastore2\n      guest"),
    "datastore not mounted": ("hosts: [esxi-1, esxi-2]", "hosts: [esxi-2]"),
    "datastore on unknown host": ("hosts: [esxi-1, esxi-2]", "hosts: [esxi-1, esxi-3]"),
    "datastore too small": ("capacity: 8GiB", "capacity: 256MiB"),
    "guest on unknown host": ("guest: linux-guest", "guest: other-guest"),
    "guest is vCenter": ("guest: linux-guest", "guest: vcenter"),
    "array is a proxy": ("array: {host: san,", "array: {host: proxy-2,"),
    "initiator is no proxy": ("initiators: [proxy-1]", "initiators: [console]"),
    "guest of a VM that is off": ('power: "on"', 'power: "off"'),
    "size is none": ("size: 512MiB", "size: 512 megs"),
    "size not aligned": ("size: 512MiB", "size: 1000000"),
    "VM twice": ("name: files-vm", "name: linux-vm"),
    "no disks": ("        - {size: 512MiB, contents: guest}", "        []"),
    "proxy is a guest": ("{host: proxy-1, tasks: ", "{host: linux-guest, tasks: "),
    "repository unknown": ("{host: repository-1, tasks: 4}", "{host: repository-2, tasks: 4}"),
    "no tasks": ("{host: proxy-1, tasks: ", "{host: proxy-1, tasks: 0} # "),
    "job with unknown VM": ("vms: [linux-vm, files-vm]", "vms: [linux-vm, file-vm]"),
    "job without VMs": ("vms: [linux-vm, files-vm]", "vms: []"),
    "unknown mode": ("mode: nbdssl", "mode: hotplug"),
    "unknown direction": ("direction: proxy-to-repository", "direction: sideways"),
    "no credentials": ("    - {host: linux-guest, username: backup, password: Guest-Backup-1}", "    []"),
    "unknown profile": ('profile: "12.3"', 'profile: "11.0"'),
    "not YAML": ("hosts:\n", "hosts: [\n"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_has_its_message(mistake: str) -> None:
    before, after = MISTAKES[mistake]
    assert SHIPPED.count(before) >= 1, "the shipped topology no longer holds the text to break"
    with pytest.raises(TopologyInvalid) as caught:
        parse(SHIPPED.replace(before, after, 1), "broken.yaml")
    assert caught.value.message == GOLDEN[mistake].rstrip("\n")
    assert caught.value.exit_code == 2


def test_golden_file_holds_nothing_else() -> None:
    assert set(GOLDEN) == set(MISTAKES)


def test_no_mapping() -> None:
    with pytest.raises(TopologyInvalid, match=r"^broken.yaml:1: a topology is a mapping"):
        parse("- 1\n", "broken.yaml")


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(TopologyInvalid, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyInvalid, match="cannot be read"):
        load(tmp_path / "binary.yaml")


def test_unknown_shipped_name() -> None:
    with pytest.raises(TopologyInvalid, match=r"nothing: no such file, and no shipped topology of that name \(demo"):
        find("nothing")
