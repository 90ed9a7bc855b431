# SPDX-License-Identifier: MIT
"""Runs on the lab's `vcenter` host: a pyVmomi login that counts every VM's snapshots. `ADDRESS TOPOLOGY` → JSON."""

from __future__ import annotations

import json
import ssl
import sys
from pathlib import Path
from typing import Any

import yaml
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim


def count(trees: list[Any]) -> int:
    """Snapshots in these trees."""
    return sum(1 + count(tree.childSnapshotList) for tree in trees)


def main(address: str, topology: Path) -> None:
    """Prints `{vm: snapshots}`."""
    vsphere = yaml.safe_load(topology.read_text())["vsphere"]
    trust = ssl.create_default_context(cafile=str(topology.parent / "pki" / "ca.pem"))
    session = SmartConnect(host=address, user=vsphere["username"], pwd=vsphere["password"], sslContext=trust)
    try:
        content = session.RetrieveContent()
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
        print(json.dumps({vm.name: count(vm.snapshot.rootSnapshotList) if vm.snapshot else 0 for vm in view.view}))
    finally:
        Disconnect(session)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
