# SPDX-License-Identifier: MIT
"""The VM that a restore makes: planned from the manifest, made, marked, found by its mark and destroyed in a real vcsim."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import InputError
from engine.restore import machine
from engine.restore.machine import OtherDisks, PlaceUnknown, VmExists
from engine.restore.points import DiskUnknown, disk_of
from engine.restore.vm import MARK, writing
from tests.engine.modes.site import Site
from tests.engine.pki import Pki

POINT: dict[str, Any] = {
    "point": "20261125T071500Z-3f2a",
    "vmx": 'guestOS = "debian12-64"\nmemSize = "768"\nnumvcpus = "2"\nfirmware = "efi"\nscsi0.virtualDev = "lsisas1068"\n',
    "disks": [
        {"key": 2001, "label": "Hard disk 2", "capacity": 2 << 20, "path": "[datastore1] web/web_1.vmdk"},
        {"key": 2000, "label": "Hard disk 1", "capacity": 1 << 20, "path": "[datastore1] web/web.vmdk"},
    ],
}


def test_the_vm_is_planned_from_the_manifest() -> None:
    plan = machine.planned("new", POINT)
    assert (plan.guest_id, plan.memory_mib, plan.cpus, plan.firmware) == ("debian12_64Guest", 768, 2, "efi")
    assert plan.controller == "lsisas1068" and [d["key"] for d in plan.disks] == [2000, 2001]
    assert plan.uuid != machine.planned("new", POINT).uuid, "every restored VM is another one"
    bare = machine.planned("new", {**POINT, "vmx": 'memSize = "many"\nguestOS = "beos"\nfirmware = "punched cards"\n'})
    assert (bare.guest_id, bare.memory_mib, bare.firmware) == ("otherGuest64", 512, "bios")


@pytest.mark.parametrize("name", ["", "a/b", "a%b", "x" * 81, "line\nbreak"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="not a name"):
        machine.planned(name, POINT)


def test_disks_are_found_by_number_and_key() -> None:
    assert disk_of(POINT, 2)["key"] == disk_of(POINT, 2001)["key"] == 2001
    with pytest.raises(DiskUnknown, match="no disk 3; it has Hard disk 2"):
        disk_of(POINT, 3)
    assert writing(["san", "hotadd", "nbd"]) == ["hotadd", "nbd"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "pki").mkdir()
    site = Site.start(folder, Pki(folder / "pki"))
    try:
        yield site
    finally:
        site.stop()


@pytest.mark.root
def test_it_is_made_marked_found_and_destroyed(site: Site) -> None:
    with site.vsphere() as vsphere:
        where = machine.place(vsphere, None, "datastore1", "new", resolver={}, step="r5")
        plan, mark = machine.planned("new", POINT), f"{MARK}s1"
        made = machine.create(vsphere, plan, where, mark, step="r5")
        assert {key: disk.capacity for key, disk in made.disks.items()} == {2000: 1 << 20, 2001: 2 << 20}
        assert {"new"} == {name for _, name, _ in machine.marked(vsphere, mark, step="r11")}
        with pytest.raises(VmExists):
            machine.place(vsphere, None, "datastore1", "new", resolver={}, step="r5")
        machine.unmark(vsphere, made.moref, "Restored", step="r11")
        assert machine.marked(vsphere, MARK, step="r11") == []
        machine.destroy(vsphere, made.moref, step="r11")
        assert "new" not in {vm["vm"] for vm in site.storage("vm.list")}


@pytest.mark.root
def test_places_that_do_not_exist(site: Site) -> None:
    with site.vsphere() as vsphere:
        with pytest.raises(PlaceUnknown, match="no datastore nowhere"):
            machine.place(vsphere, None, "nowhere", "new", resolver={}, step="r5")
        with pytest.raises(PlaceUnknown, match="esxi-9 does not mount datastore1"):
            machine.place(vsphere, "esxi-9", "datastore1", "new", resolver={}, step="r5")
        known = machine.place(vsphere, None, "datastore1", "new", resolver={}, step="r5")
        alias = machine.place(vsphere, "alias", "datastore1", "new", resolver={"alias": known.host_name}, step="r5")
        assert alias.host_name == "alias" and alias.host._moId == known.host._moId


@pytest.mark.root
def test_a_vm_with_other_disks_is_taken_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_devices", lambda plan, datastore: [])
    with site.vsphere() as vsphere:
        where = machine.place(vsphere, None, "datastore1", "odd", resolver={}, step="r5")
        with pytest.raises(OtherDisks):
            machine.create(vsphere, machine.planned("odd", POINT), where, MARK, step="r5")
        assert "odd" not in {vm.name for vm in vsphere.vms(step="r5")}


def test_tls_files_for_nbd_programs(tmp_path: Path) -> None:
    from engine.recovery import certificates

    identity = Pki(tmp_path).identity("repository-1")
    with certificates.folder(identity) as folder:
        names = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert names == dict.fromkeys(
            ("ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem"), 0o600
        )
        assert b"PRIVATE KEY" not in (folder / "server-cert.pem").read_bytes()
        assert (folder / "server-key.pem").read_bytes().startswith(b"-----BEGIN")
    assert not folder.exists()
    identity.certificate.write_bytes(b"nothing")
    with pytest.raises(certificates.IdentityUnusable), certificates.folder(identity):
        pass
