# SPDX-License-Identifier: MIT
"""A vCenter over real storage services, and a running SCSI bus where a test wants one."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim

from fakes.core.fabric import FabricClient, serve
from fakes.core.inventory import Inventory
from tests.fakes.storage.conftest import ROOT, first_line
from tests.fakes.vcenter.conftest import HOSTS, PASSWORD, MakeSite, Site
from tests.fakes.vcenter.fabric_double import HostDouble
from tests.fakes.vcenter.test_recovery import kill

MIB = 1 << 20
GRAIN = 65536
SIZE = 4 * MIB


def real_inventory() -> Inventory:
    """A VM to be backed up (off), one that is a proxy (on), and one on a datastore that the proxy's host lacks."""
    return Inventory.model_validate(
        {
            "password": PASSWORD,
            "hosts": [{"name": name, "address": address} for name, address in HOSTS.items()],
            "datastores": [
                {"name": "datastore1", "capacity": "128MiB", "hosts": list(HOSTS)},
                {"name": "datastore2", "capacity": "32MiB", "hosts": ["esxi-2"]},
            ],
            "vms": [
                {
                    "name": "web",
                    "host": "esxi-1",
                    "datastore": "datastore1",
                    "disks": [{"size": SIZE}, {"size": "2MiB"}],
                },
                {
                    "name": "proxy-2",
                    "host": "esxi-1",
                    "datastore": "datastore1",
                    "power": "on",
                    "disks": [{"size": "1MiB"}],
                },
                {"name": "far", "host": "esxi-2", "datastore": "datastore2", "disks": [{"size": "1MiB"}]},
            ],
        }
    )


class Daemons:
    """Processes of the fabric, ended with the test."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.fabric = home / "fabric"
        self.fabric.mkdir()
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *argv: str) -> dict[str, Any]:
        """Starts `python -m argv…` and waits for its line."""
        process = subprocess.Popen(
            [sys.executable, "-m", *argv], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.running[name] = process
        line: dict[str, Any] = json.loads(first_line(process))
        return line

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """Ends one."""
        process = self.running.pop(name)
        process.send_signal(number)
        process.communicate(timeout=20)


class RealSite:
    """A gateway over real storages."""

    def __init__(self, home: Path, make_site: MakeSite, **settings: Any) -> None:
        self.daemons = Daemons(home)
        self.fabric = self.daemons.fabric
        for store in real_inventory().datastores:
            self.storage_of(store.name, store.capacity)
        self.site: Site = make_site(fabric=False, inventory=real_inventory(), fabric_folder=self.fabric, **settings)
        self.hosts = {name: HostDouble(name, address) for name, address in HOSTS.items()}
        for name, host in self.hosts.items():
            self.site.loop.run(serve(self.fabric / f"esxi-{name}.sock", host))
        self.session: Any = self.site.connect()

    def storage_of(self, name: str, capacity: int) -> None:
        """Starts a datastore's service."""
        state = str(self.daemons.home / name)
        argv = ["--name", name, "--state", state, "--fabric", str(self.fabric), "--capacity", str(capacity)]
        self.daemons.start(name, "fakes.storage", *argv)

    def bus(self, name: str = "proxy-2") -> Path:
        """Starts a VM's SCSI bus; returns where its devices appear."""
        devices = self.daemons.home / f"by-id-{name}"
        argv = ["--vm", name, "--fabric", str(self.fabric), "--devices", str(devices)]
        self.daemons.start(f"bus-{name}", "fakes.scsi_bus", *argv)
        return devices

    def vm(self, name: str) -> Any:
        """A VM by name."""
        return self.site.vm(self.session, name)

    def again(self) -> None:
        """Kills vcsim and logs in to the new one."""
        kill(self.site)
        self.session = self.site.connect()

    def call(self, method: str, datastore: str = "datastore1", **params: Any) -> Any:
        """Asks a storage."""
        client = FabricClient(self.fabric / f"storage-{datastore}.sock")
        try:
            return client.call(method, **params)
        finally:
            client.close()

    @contextlib.contextmanager
    def disk(self, export: str, datastore: str = "datastore1") -> Iterator[Any]:
        """An NBD connection to an export."""
        handle = nbd.NBD()
        handle.set_export_name(export)
        with contextlib.suppress(AttributeError):
            handle.set_request_block_size(False)
        handle.connect_unix(str(self.fabric / f"nbd-{datastore}.sock"))
        try:
            yield handle
        finally:
            handle.shutdown()

    def write(self, vm: str, key: int, offset: int, data: bytes) -> None:
        """What the guest does."""
        with self.disk(f"live/{vm}/{key}") as handle:
            handle.pwrite(data, offset)

    def read(self, export: str) -> bytes:
        """All of an export."""
        with self.disk(export) as handle:
            return bytes(handle.pread(handle.get_size(), 0))

    def journal(self) -> list[dict[str, Any]]:
        """All entries."""
        return [json.loads(line) for line in self.site.journal.read_text().splitlines()]

    def close(self) -> None:
        """Ends the daemons (the gateway ends with its module)."""
        for name in list(self.daemons.running):
            self.daemons.stop(name)


@pytest.fixture
def real(make_site: MakeSite) -> Iterator[RealSite]:
    """A site of this test's own, in memory where there is room."""
    base = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="vc-real-", dir=base if base.is_dir() else None))
    made: RealSite | None = None
    try:
        made = RealSite(folder, make_site)
        yield made
    finally:
        if made is not None:
            made.close()
        shutil.rmtree(folder, ignore_errors=True)


def done(task: Any) -> Any:
    """A task's result."""
    WaitForTask(task)
    return task.info.result


def take(vm: Any, name: str = "backup") -> Any:
    """A snapshot."""
    return done(vm.CreateSnapshot_Task(name=name, description=f"mark {name}", memory=False, quiesce=False))


def drop(snapshot: Any) -> None:
    """Removes it."""
    done(snapshot.RemoveSnapshot_Task(removeChildren=False))


def disks(config: Any) -> list[Any]:
    """Disks of a config, by key."""
    return sorted((d for d in config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)), key=lambda d: d.key)


def reconfigure(vm: Any, **spec: Any) -> None:
    """A finished ReconfigVM."""
    done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(**spec)))
