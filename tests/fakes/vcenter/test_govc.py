# SPDX-License-Identifier: MIT
"""Sessions of govc, the stock client of govmomi v0.56.0: an inventory on real storage, and vcsim's own model."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trustme

from fakes.vcenter import source
from tests.fakes.vcenter.conftest import PASSWORD, USER, MakeSite, Site
from tests.fakes.vcenter.real import RealSite
from tests.fakes.vcenter.real import real as real
from tests.fakes.vcenter.test_gateway import get

MODULE = Path(__file__).parent / "govc"


class Govc:
    """govc at one site; every command logs in by itself unless the login is kept."""

    def __init__(self, program: Path, site: Site, folder: Path, authority: trustme.CA) -> None:
        self._program = program
        self.url = f"https://127.0.0.1:{site.port}"
        authority.cert_pem.write_to_path(folder / "ca.pem")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GOV")},
            "HOME": str(folder),
            "GOVC_URL": f"{self.url}/sdk",
            "GOVC_USERNAME": USER,
            "GOVC_PASSWORD": PASSWORD,
            "GOVC_TLS_CA_CERTS": str(folder / "ca.pem"),
        }

    def ask(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """One command, whatever comes of it."""
        return subprocess.run(
            ["govc", *words],
            executable=self._program,
            env={**self._environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def __call__(self, *words: str, **environment: str) -> str:
        """One command that succeeds; returns what it prints."""
        done = self.ask(*words, **environment)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr or done.stdout}"
        return done.stdout

    def refused(self, *words: str, **environment: str) -> str:
        """One command that fails; returns why."""
        done = self.ask(*words, **environment)
        assert done.returncode == 1, f"{' '.join(words)}: {done.stdout}"
        return done.stderr.strip()


@pytest.fixture(scope="module")
def program() -> Path:
    """govc, built once and kept beside vcsim."""
    try:
        return source.build(source.default_cache(), MODULE)
    except source.VcsimMissing as exc:
        pytest.skip(f"no govc: {exc}")


@pytest.fixture(scope="module")
def own(make_site: MakeSite) -> Site:
    """A gateway over vcsim's own model."""
    return make_site(fabric=False, inventory=None, flags=["-dc", "1", "-ds", "1", "-vm", "1", "-host", "1"])


@pytest.fixture
def govc(program: Path, own: Site, tmp_path: Path, authority: trustme.CA) -> Govc:
    """At vcsim's own model."""
    return Govc(program, own, tmp_path, authority)


def test_virtual_machines_on_a_real_storage(
    program: Path, real: RealSite, tmp_path: Path, authority: trustme.CA
) -> None:
    govc = Govc(program, real.site, tmp_path, authority)
    assert "VMware vCenter Server 8.0.3" in govc("about")
    assert {"/DC1/vm/web", "/DC1/datastore/datastore1"} <= set(govc("find").split("\n"))
    assert "File:         [datastore1] web/web_1.vmdk" in govc("device.info", "-vm", "web", "disk-1000-1")
    assert 'displayName = "web"' in govc("datastore.download", "-ds", "datastore1", "web/web.vmx", "-")

    govc("snapshot.create", "-vm", "web", "-m=false", "-d", "by govc", "first")
    govc("snapshot.create", "-vm", "web", "-m=false", "second")
    assert govc("snapshot.tree", "-vm", "web").split() == ["first", "second", "."]
    assert "web-000002.vmdk" in govc("device.info", "-vm", "web", "disk-1000-0")
    assert "no branches" in govc.refused("snapshot.revert", "-vm", "web", "first")
    govc("snapshot.revert", "-vm", "web", "second")
    govc("snapshot.remove", "-vm", "web", "first")
    govc("snapshot.remove", "-vm", "web", "*")
    assert govc("snapshot.tree", "-vm", "web") == ""
    assert real.call("vm.get", vm="web")["snapshots"] == []

    made = ("-ds", "datastore1", "-net", "VM Network", "-host", "/DC1/host/Cluster1/10.77.21.2", "-on=false")
    govc("vm.create", *made, "-disk", "1MB", "new")
    govc("vm.disk.create", "-vm", "new", "-ds", "datastore1", "-name", "new/more", "-size", "1M")
    govc("vm.disk.change", "-vm", "new", "-disk.label", "Hard disk 1", "-size", "2M")
    assert [disk["size"] for disk in real.call("vm.get", vm="new")["disks"]] == [2 << 20, 1 << 20]
    attach = ("vm.disk.attach", "-vm", "new", "-ds", "datastore1", "-disk", "web/web.vmdk")
    assert len(govc.refused(*attach, "-link=true")) > len("govc: ")  # a reason is given
    govc(*attach, "-link=false", "-persist=false", "-mode", "independent_nonpersistent")
    assert "disk-1000-2" in govc("device.ls", "-vm", "new")
    govc("device.remove", "-vm", "new", "-keep", "disk-1000-2")
    govc("vm.power", "-on", "new")
    assert govc.refused("vm.power", "-on", "new").endswith("govc: Invalid power state.")
    govc("vm.power", "-off", "new")
    assert "is reserved" in govc.refused("vm.change", "-vm", "new", "-e", "SET.guest.ipAddress=10.0.0.1")
    govc("vm.destroy", "new")
    assert "PowerOffVM" in govc("tasks")
    assert "Removed new" in govc("events", "-n", "5")
    assert "iSCSI Software Adapter" in govc("host.storage.info", "-host", "10.77.21.2", "-t", "hba")


def test_what_is_served_beside_the_sdk_names_the_gateway(govc: Govc, own: Site, tmp_path: Path) -> None:
    urls = re.findall(r"https?://[^/\s]+", govc("option.ls") + govc("sso.service.ls", "-l"))
    assert len(urls) > 6 and set(urls) == {govc.url}
    assert USER.split("@")[0] in govc("sso.user.ls")
    # vcsim's own pages: one that its users wait for, one that is nobody's business
    assert get(own, "/about")[0] == 200
    assert get(own, "/debug/vars")[0] == 404
    (tmp_path / "note.txt").write_text("content of a library\n")
    govc("library.create", "-pub", "lib")
    published = re.findall(r"https?://[^/\s]+", govc("library.info", "lib"))
    assert set(published) == {govc.url}
    govc("library.import", "lib", str(tmp_path / "note.txt"))
    govc("library.export", "/lib/note/note.txt", str(tmp_path / "back.txt"))
    assert (tmp_path / "back.txt").read_text() == "content of a library\n"


def test_the_gateways_own_login_is_not_listed(govc: Govc, own: Site) -> None:
    world: Any = own.loop.run(own.gateway.world())
    listed = govc("session.ls")
    assert "govc/" in listed and world.admin.key not in listed
    assert "not there" in govc.refused("session.rm", world.admin.key)
    assert "poweredOn" in govc("vm.info", "DC0_H0_VM0")


def test_files_by_session_by_ticket_and_by_password(govc: Govc, own: Site, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(os.urandom(3 << 20))
    by_ticket = {"GOVMOMI_USE_SERVICE_TICKET": "1", "GOVMOMI_USE_SERVICE_TICKET_HOSTNAME": "1"}
    for name, how in (("a", {}), ("b", by_ticket)):
        govc("datastore.upload", str(tmp_path / "up"), f"dir/{name}", **how)
        govc("datastore.download", f"dir/{name}", str(tmp_path / name), **how)
        assert (tmp_path / name).read_bytes() == (tmp_path / "up").read_bytes()
    assert govc.refused("datastore.rm", "dir/none") == "govc: File not found."
