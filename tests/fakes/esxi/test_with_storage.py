# SPDX-License-Identifier: MIT
"""The host as `vadplab fake esxi --fabric …`, in front of the real storage service."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from fakes.core.fabric import FabricClient, connect
from tests.fakes.esxi.nfc_client import NfcError, session
from tests.processes import suspend

SIZE = 4 << 20
INVENTORY = """
hosts: [{name: esxi-1, address: 127.0.0.1}, {name: esxi-2, address: 127.0.0.2}]
datastores:
  - {name: datastore1, capacity: 64MiB, hosts: [esxi-1]}
  - {name: datastore2, capacity: 64MiB, hosts: [esxi-2]}
"""


class Site:
    """Storage, a host and one VM `web` with one disk."""

    def __init__(self, folder: Path, certificate: Path) -> None:
        self.fabric = folder / "fabric"
        self.fabric.mkdir()
        self.journal = folder / "journal.jsonl"
        (folder / "inventory.yaml").write_text(INVENTORY)
        self.processes: list[subprocess.Popen[str]] = []
        self._run(
            "fakes.storage", "--name", "datastore1", "--state", folder / "ds1", "--fabric", self.fabric,
            "--capacity", "64MiB",
        )  # fmt: skip
        self.storage = FabricClient(self.fabric / "storage-datastore1.sock", timeout=20)
        disk = {"key": 2000, "label": "Hard disk 1", "size": SIZE, "file": "web/web.vmdk"}
        self.storage.call("vm.create", vm="web", uuid=str(uuid.uuid4()), disks=[disk], files={})
        line = self._run(
            "fakes.esxi", "--name", "esxi-1", "--listen", "127.0.0.1:0", "--certificate", certificate,
            "--fabric", self.fabric, "--journal", self.journal, "--inventory", folder / "inventory.yaml",
            "--no-host-view",
        )  # fmt: skip
        host, _, port = line.rsplit(" ", 1)[1].rpartition(":")
        self.address = (host, int(port))
        self.host = FabricClient(self.fabric / "esxi-esxi-1.sock", timeout=20)

    def _run(self, module: str, *arguments: object) -> str:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line, f"{module} did not start"
        return line

    def ticket(self, *, write: bool = False, datastore: str = "datastore1", vm: str = "web") -> str:
        session_id = str(uuid.uuid4())
        self.host.call(
            "ticket.issue", session_id=session_id, vm=vm, datastore=datastore, folder="web", read_only=not write, ttl=60
        )
        return session_id

    def guest_writes(self, offset: int, data: bytes) -> None:
        handle = nbd.NBD()
        handle.set_export_name("live/web/2000")
        handle.connect_socket(connect(self.fabric / "nbd-datastore1.sock", 10).detach())
        handle.pwrite(data, offset)
        handle.flush()
        handle.shutdown()

    def close(self) -> None:
        self.storage.close()
        self.host.close()
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def site(tmp_path: Path, certificate: Path) -> Iterator[Site]:
    made = Site(tmp_path, certificate)
    try:
        yield made
    finally:
        made.close()


def _code(attempt: Any) -> int:
    with pytest.raises(NfcError) as caught:
        attempt()
    return caught.value.code


def test_base_disk_opens_only_with_a_snapshot(site: Site) -> None:
    path = "[datastore1] web/web.vmdk"
    site.storage.call("vm.power", vm="web", on=True)
    site.guest_writes(1 << 20, b"before" * 100)
    with session(site.address, site.ticket()) as nfc:
        assert _code(lambda: nfc.open(path)) == 15
        nfc.close()
    site.storage.call("snapshot.create", vm="web", name="backup", description="")
    site.guest_writes(1 << 20, b"after!" * 100)
    for service in ("nfc", "nfcssl"):
        with session(site.address, site.ticket(), service=service) as nfc:
            handle, sectors = nfc.open(path)
            assert sectors == SIZE // 512
            assert nfc.read(handle, 1 << 20, 1024)[:600] == b"before" * 100
            nfc.close()
    assert [json.loads(line)["event"] for line in site.journal.read_text().splitlines()].count("open") == 2


def test_read_write_ticket_on_a_powered_off_vm(site: Site) -> None:
    path = "[datastore1] web/web.vmdk"
    data = bytes(range(256)) * 1024
    with session(site.address, site.ticket(write=True), service="vpxa-nfcssl") as nfc:
        handle, _ = nfc.open(path, write=True)
        nfc.write(handle, 65536, data)
        nfc.close_file(handle)
        nfc.close()
    with session(site.address, site.ticket()) as nfc:
        assert _code(lambda: nfc.open(path, write=True)) == 0x0B
        handle, _ = nfc.open(path)
        assert nfc.read(handle, 0, 65536 + len(data)) == bytes(65536) + data
        nfc.close()


def test_descriptor_and_configuration(site: Site) -> None:
    with session(site.address, site.ticket()) as nfc:
        for name, expected in (("web.vmdk", b"Disk DescriptorFile"), ("web.vmx", b"displayName")):
            handle, size = nfc.open(f"[datastore1] web/{name}", kind=0)
            assert expected in nfc.read(handle, 0, size)
            nfc.close_file(handle)
        nfc.close()


def test_confinement(site: Site) -> None:
    with session(site.address, site.ticket(datastore="datastore2")) as nfc:
        assert _code(lambda: nfc.open("[datastore2] web/web.vmdk")) == 4  # the host does not mount it
        nfc.close()
    with session(site.address, site.ticket(vm="other")) as nfc:
        assert _code(lambda: nfc.open("[datastore1] web/web.vmdk")) == 13
        nfc.close()


def test_storage_that_hangs_is_given_up(tmp_path: Path, certificate: Path) -> None:
    site = Site(tmp_path, certificate)
    site.processes.pop().kill()
    try:
        site._run(
            "fakes.esxi", "--name", "esxi-1", "--listen", f"127.0.0.1:{site.address[1]}", "--certificate", certificate,
            "--fabric", site.fabric, "--storage-timeout", "0.5",
        )  # fmt: skip
        storage = site.processes[0]
        with session(site.address, site.ticket()) as nfc:
            handle, _ = nfc.open("[datastore1] web/web.vmdk")
            suspend(storage.pid)
            assert _code(lambda: nfc.read(handle, 0, 512)) == 7
            nfc.close()
    finally:
        storage.send_signal(signal.SIGCONT)
        site.close()
