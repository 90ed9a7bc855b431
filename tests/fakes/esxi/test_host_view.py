# SPDX-License-Identifier: MIT
"""The host's 443 and 902 together: a pyVmomi client of the host itself gets a ticket there and redeems it here."""

from __future__ import annotations

import http.client
import shutil
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim

from fakes.core.fabric import FabricClient
from fakes.vcenter import source
from tests.fakes.esxi.nfc_client import session

INVENTORY = """
hosts: [{name: esxi-1, address: 127.0.0.1}]
datastores: [{name: datastore1, capacity: 64MiB, hosts: [esxi-1]}]
vms: [{name: web, host: esxi-1, datastore: datastore1, disks: [{size: 4MiB}]}]
"""


def _has_vcsim() -> bool:
    return shutil.which("vcsim") is not None or source.built_path(source.default_cache()).is_file()


@pytest.mark.skipif(not _has_vcsim(), reason="no vcsim on PATH or built (make setup)")
def test_host_view_beside_902(tmp_path: Path, certificate: Path) -> None:
    fabric = tmp_path / "fabric"
    fabric.mkdir()
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", *map(str, arguments)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    try:
        storage = start(
            "fakes.storage", "--name", "datastore1", "--state", tmp_path / "ds1", "--fabric", fabric,
            "--capacity", "64MiB",
        )  # fmt: skip
        assert storage.stdout is not None and storage.stdout.readline()
        host = start(
            "fakes.esxi", "--name", "esxi-1", "--listen", "127.0.0.1:0", "--certificate", certificate, "--fabric", fabric,
            "--inventory", tmp_path / "inventory.yaml", "--journal", tmp_path / "journal.jsonl", "--https-port", "0",
            "--vcsim", "docker",
        )  # fmt: skip
        assert host.stdout is not None
        where = host.stdout.readline().split()[-1].rpartition(":")
        url = host.stdout.readline().split()[-1]
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        context = ssl._create_unverified_context()
        client = SmartConnect(host="127.0.0.1", port=port, user="root", pwd="VMware1!", sslContext=context)
        content = client.RetrieveContent()
        assert content.about.apiType == "HostAgent"
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
        assert [vm.name for vm in view.view] == ["web"]
        Disconnect(client)
        storage_client = FabricClient(fabric / "storage-datastore1.sock", timeout=10)
        assert [vm["vm"] for vm in storage_client.call("vm.list")] == ["web"]
        storage_client.close()
        issued = FabricClient(fabric / "esxi-esxi-1.sock", timeout=10)
        issued.call(
            "ticket.issue", session_id="t-1", vm="web", datastore="datastore1", folder="web", read_only=True, ttl=30
        )
        file = "/folder/web/web.vmx?dsName=datastore1"
        issued.call("file.permit", id="t-2", verb="GET", url=f"https://127.0.0.1{file}")
        issued.close()
        statuses = []
        for _ in range(2):
            web = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
            web.request("GET", file, headers={"Cookie": 'vmware_cgi_ticket="t-2"'})
            answer = web.getresponse()
            statuses.append((answer.status, b'displayName = "web"' in answer.read()))
            web.close()
        assert statuses == [(200, True), (401, False)]
        with session((where[0], int(where[2])), "t-1") as nfc:
            handle, _ = nfc.open("[datastore1] web/web.vmdk")
            assert nfc.read(handle, 0, 4096) == bytes(4096)
            nfc.close()
        assert (tmp_path / "soap.jsonl").exists()
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) in (0, -signal.SIGTERM)
            assert process.stdout is not None
            process.stdout.close()
