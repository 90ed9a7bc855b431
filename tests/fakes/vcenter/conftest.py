# SPDX-License-Identifier: MIT
"""A gateway with a real vcsim on loopback, once a module; clients are blocking, the gateway runs in a thread's loop."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim

from fakes.core.inventory import Inventory
from fakes.vcenter import source
from fakes.vcenter.gateway import Gateway, Settings
from tests.fakes.vcenter.fabric_double import Fabric, Loop

HOSTS = {"esxi-1": "10.77.21.2", "esxi-2": "10.77.22.2"}
USER, PASSWORD = "administrator@vsphere.local", "Pa55 <word>&"


def make_inventory() -> Inventory:
    """Two hosts, one datastore, a running VM with one disk and a VM that is off with two."""
    return Inventory.model_validate(
        {
            "password": PASSWORD,
            "hosts": [{"name": name, "address": address} for name, address in HOSTS.items()],
            "datastores": [{"name": "datastore1", "capacity": "2GiB", "hosts": list(HOSTS)}],
            "vms": [
                {
                    "name": "linux-vm",
                    "host": "esxi-1",
                    "datastore": "datastore1",
                    "power": "on",
                    "nic": {"address": "10.77.31.2"},
                    "disks": [{"size": "256MiB", "contents": "guest"}],
                },
                {
                    "name": "files-vm",
                    "host": "esxi-2",
                    "datastore": "datastore1",
                    "disks": [{"size": "64MiB"}, {"size": "32MiB"}],
                },
            ],
        }
    )


@pytest.fixture(scope="session")
def vcsim() -> source.VcsimSource:
    """vcsim, built once and kept in the cache that the product itself uses."""
    try:
        return source.locate(None, source.default_cache(), has_image=lambda image: False)
    except source.VcsimMissing as exc:
        pytest.skip(f"no vcsim: {exc}")


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """The lab's CA."""
    return trustme.CA()


@dataclass
class Site:
    """A running gateway and what stands around it."""

    gateway: Gateway
    loop: Loop
    port: int
    trust: ssl.SSLContext
    fabric: Fabric | None
    journal: Path
    sessions: list[Any] = field(default_factory=list)

    def connect(self, password: str = PASSWORD) -> Any:
        """A logged-in ServiceInstance that verifies the certificate."""
        return self.connect_as(USER, password)

    def connect_as(self, user: str, password: str = PASSWORD) -> Any:
        """The same for another user."""
        session = SmartConnect(host="127.0.0.1", port=self.port, user=user, pwd=password, sslContext=self.trust)
        self.sessions.append(session)
        return session

    def vm(self, session: Any, name: str) -> Any:
        """A VM by name."""
        content = session.RetrieveContent()
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
        try:
            return next(vm for vm in view.view if vm.name == name)
        finally:
            view.Destroy()

    def close(self) -> None:
        """Stops everything."""
        for session in self.sessions:
            with contextlib.suppress(Exception):  # the gateway may have been replaced under it
                Disconnect(session)
        self.loop.run(self.gateway.stop())
        if self.fabric is not None:
            self.fabric.close()
        self.loop.close()


MakeSite = Callable[..., Site]


@pytest.fixture(scope="module")
def make_site(
    tmp_path_factory: pytest.TempPathFactory, vcsim: source.VcsimSource, authority: trustme.CA
) -> Iterator[MakeSite]:
    """Starts gateways: `make_site(fabric=True, **settings)`; `fabric_folder` is that of daemons that run already."""
    sites: list[Site] = []

    def make(*, fabric: bool = True, fabric_folder: Path | None = None, **settings: Any) -> Site:
        folder = tmp_path_factory.mktemp("site")
        pem = folder / "vcenter.pem"
        issued = authority.issue_cert("127.0.0.1")
        pem.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        loop = Loop()
        double = Fabric(folder / "fabric", loop, HOSTS) if fabric else None
        values: dict[str, Any] = {
            "source": vcsim,
            "certificate": pem,
            "inventory": make_inventory(),
            "fabric": double.folder if double else fabric_folder,
            "journal": folder / "journal.jsonl",
            "password": PASSWORD,
        }
        gateway = Gateway(Settings(**{**values, **settings}))
        _, port = loop.run(gateway.start("127.0.0.1", 0))
        sites.append(Site(gateway, loop, port, trust, double, folder / "journal.jsonl"))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture(scope="module")
def site(make_site: MakeSite) -> Site:
    """A vCenter with storage and hosts, shared by a module."""
    return make_site()


@pytest.fixture(scope="module")
def session(site: Site) -> Any:
    """A login at `site`."""
    return site.connect()
