# SPDX-License-Identifier: MIT
"""A whole fake site on loopback: vCenter (with vcsim), a host on an address of its own (902), storage, a SAN, a VM's SCSI bus.

Port 902 of an address of 127/8 needs the right to use low ports; `Site.start` skips the test, with the reason, where a part
cannot be had.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbd
import pytest
import yaml

from engine.dialer import Dialer
from engine.events import EventLog
from engine.vsphere import Disk, VSphere
from fakes.core.fabric import FabricClient, connect
from tests.engine.pki import Pki

PASSWORD = "VMware1!"
PROXY_UUID = "42110000-1111-2222-3333-444455556666"
SIZE = 8 << 20
SECRET = "a-secret-of-the-SAN"
INITIATOR = "iqn.2026-01.lab.vadplab:proxy-1"


@dataclass
class Site:
    """The running fakes."""

    folder: Path
    address: str
    fabric: Path
    port: int = 0
    san_port: int = 0
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    @classmethod
    def start(cls, folder: Path, pki: Pki) -> Site:
        """Starts everything; skips the test where something is missing."""
        for program in ("tgtd", "nbdfuse", "nbdkit"):
            if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
                pytest.skip(f"{program} is not installed")
        address = f"127.{random.randrange(64, 250)}.{random.randrange(1, 250)}.{random.randrange(1, 250)}"
        try:
            socket.create_server((address, 902)).close()
        except OSError as exc:
            pytest.skip(f"port 902 cannot be used here: {exc.strerror}")
        if not os.access("/dev/fuse", os.W_OK):
            pytest.skip("no /dev/fuse")
        fabric = folder / "fabric"
        fabric.mkdir()
        self = cls(folder, address, fabric)
        try:
            self._start(pki)
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self, pki: Pki) -> None:
        (self.folder / "inventory.yaml").write_text(yaml.safe_dump(self.inventory()))
        (self.folder / "secret").write_text(f"{SECRET}\n")
        inventory = ("--inventory", self.folder / "inventory.yaml", "--fabric", self.fabric)
        self.run(
            "fakes.storage", "--name", "datastore1", "--state", self.folder / "ds1", "--fabric", self.fabric,
            "--capacity", "256MiB",
        )  # fmt: skip
        lun = self.storage("datastore.info")["lun"]
        self.san_port = free_port()
        self.run(
            "fakes.san", "--listen", f"127.0.0.1:{self.san_port}", "--lun", lun["path"], "--naa", lun["naa"],
            "--name", "datastore1", "--chap", "proxy", "--chap-password-file", self.folder / "secret",
            "--state", self.folder / "san", "--fabric", self.fabric,
        )  # fmt: skip
        self.run("fakes.scsi_bus", "--vm", "proxy-2", "--fabric", self.fabric, "--devices", self.devices)
        host = pki.identity("esxi-1").certificate
        self.run(
            "fakes.esxi",
            "--name",
            "esxi-1",
            "--listen",
            self.address,
            "--certificate",
            host,
            *inventory,
            "--no-host-view",
        )
        vcenter = self.run(
            "fakes.vcenter", "--listen", "127.0.0.1:0", "--certificate", pki.identity("vcenter").certificate, *inventory,
            "--state", self.folder / "vc", "--journal", self.folder / "journal.jsonl",
        )  # fmt: skip
        self.port = int(vcenter.split("//")[1].split("/")[0].rpartition(":")[2])

    def inventory(self) -> dict[str, Any]:
        """`web` runs, `proxy-2` is the proxy's VM, `restored` is off and new."""
        vm = {"host": "esxi-1", "datastore": "datastore1"}
        return {
            "password": PASSWORD,
            "hosts": [{"name": "esxi-1", "address": self.address}],
            "datastores": [{"name": "datastore1", "capacity": "256MiB", "hosts": ["esxi-1"]}],
            "vms": [
                {"name": "web", "power": "on", "disks": [{"size": SIZE}], **vm},
                {"name": "proxy-2", "power": "on", "uuid": PROXY_UUID, "disks": [{"size": "1MiB"}], **vm},
                {"name": "restored", "disks": [{"size": SIZE}], **vm},
            ],
        }

    @property
    def devices(self) -> Path:
        """Where disks appear that are attached to the proxy's VM."""
        return self.folder / "devices"

    def run(self, module: str, *arguments: object) -> str:
        """Starts a fake; gives its ready line."""
        with (self.folder / f"{module}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)], stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.processes[module] = process
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            text = (self.folder / f"{module}.log").read_text()
            if process.wait(10) == 3:
                pytest.skip(f"{module}: {text.strip()[-300:]}")
            raise AssertionError(f"{module} did not start: {text[-2000:]}")
        return line

    def stop(self) -> None:
        """Ends everything."""
        for process in reversed(self.processes.values()):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)

    def storage(self, method: str, **params: Any) -> Any:
        """Asks the storage."""
        return FabricClient(self.fabric / "storage-datastore1.sock", timeout=20).call(method, **params)

    def array(self, method: str, **params: Any) -> Any:
        """Asks the SAN's management."""
        return FabricClient(self.fabric / "san-datastore1.sock", timeout=20).call(method, **params)

    def guest_writes(self, writes: dict[int, bytes]) -> None:
        """The guest of `web` writes."""
        handle = self._disk("live/web/2000")
        for offset, data in writes.items():
            handle.pwrite(data, offset)
        handle.flush()
        handle.shutdown()

    def content(self, path: str) -> bytes:
        """The bytes of a disk file (`web/web.vmdk`), read past the engine."""
        handle = self._disk(f"file/{path}")
        data = b"".join(handle.pread(1 << 20, at) for at in range(0, SIZE, 1 << 20))
        handle.shutdown()
        return data

    def _disk(self, export: str) -> nbd.NBD:
        handle = nbd.NBD()
        handle.set_export_name(export)
        handle.connect_socket(connect(self.fabric / "nbd-datastore1.sock", 10).detach())
        return handle

    @property
    def login(self) -> dict[str, Any]:
        """How to log in to the vCenter."""
        return {
            "name": "vcenter",
            "address": "127.0.0.1",
            "port": self.port,
            "thumbprint": None,
            "username": "administrator@vsphere.local",
            "password": PASSWORD,
        }

    @contextlib.contextmanager
    def vsphere(self, step: str = "8") -> Any:
        """A session of the manager."""
        session = VSphere.login(Dialer(EventLog(None, host="backup-server", process="test")), step=step, **self.login)
        try:
            yield session
        finally:
            session.logout()

    def proxy_settings(self, **changes: Any) -> dict[str, Any]:
        """What the proxy's configuration says of SAN and HotAdd."""
        settings: dict[str, Any] = {
            "resolver": {"esxi-1": self.address},
            "proxy": {"vm_uuid": PROXY_UUID, "devices": str(self.devices)},
            "san": {
                "portals": [f"127.0.0.1:{self.san_port}"],
                "initiator": INITIATOR,
                "chap": {"username": "proxy", "secret_file": str(self.folder / "secret")},
            },
        }
        return {name: value for name, value in (settings | changes).items() if value is not None}

    def journal(self) -> list[dict[str, Any]]:
        """Calls that the vCenter answered."""
        return [json.loads(line) for line in (self.folder / "journal.jsonl").read_text().splitlines()]

    def attached(self) -> list[str]:
        """Disk files that are attached to other VMs."""
        return [each["path"] for each in self.storage("disk.attachments")]


@dataclass
class Frozen:
    """A snapshot of `web`: its reference, the disk as of it, and the bytes it froze."""

    moref: str
    vm: dict[str, str]
    disk: Disk
    vmx: str
    content: bytes


def snapshot(site: Site, name: str) -> Frozen:
    """Takes a snapshot of `web`."""
    with site.vsphere() as vsphere:
        vm = vsphere.find_vm("web", step="8")
        disk = vm.disks[0]
        made = vsphere.create_snapshot(vm.moref, name, "", step="15", timeout=30)
        device = next(d for d in vsphere.snapshot_devices(made.moref, step="15") if d.key == disk.key)
        frozen = Disk(disk.key, disk.label, str(device.backing.fileName), disk.capacity)
    content = site.content(frozen.path.partition("] ")[2])
    return Frozen(made.moref, {"name": "web", "moref": vm.moref, "uuid": vm.uuid}, frozen, vm.vmx, content)


def free_port() -> int:
    """A TCP port of loopback that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
