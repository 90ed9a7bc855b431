# SPDX-License-Identifier: MIT
"""Runs on the lab's `vcenter` host: what an administrator does there, over pyVmomi. `ADDRESS TOPOLOGY VERB …` → JSON.

`end-sessions`: ends every session but this one. `tracking VM on|off`, in effect after a snapshot was made and
removed. `grow VM KEY BYTES` (powered off, no snapshots).
`show`: every VM. `power VM on|off`. `destroy VM`.
"""

from __future__ import annotations

import json
import ssl
import sys
from pathlib import Path
from typing import Any

import yaml
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim


def main(address: str, topology: Path, verb: str, *argv: str) -> None:
    """Prints what was done."""
    vsphere = yaml.safe_load(topology.read_text())["vsphere"]
    trust = ssl.create_default_context(cafile=str(topology.parent / "pki" / "ca.pem"))
    session = SmartConnect(host=address, user=vsphere["username"], pwd=vsphere["password"], sslContext=trust)
    try:
        content = session.RetrieveContent()
        match verb:
            case "end-sessions":
                done = end_sessions(content.sessionManager)
            case "tracking":
                done = tracking(machine(content, argv[0]), argv[1] == "on")
            case "grow":
                done = grow(machine(content, argv[0]), int(argv[1]), int(argv[2]))
            case "show":
                done = show(content)
            case "power":
                done = power(machine(content, argv[0]), argv[1] == "on")
            case "snapshot":
                WaitForTask(machine(content, argv[0]).CreateSnapshot_Task("left", argv[1], False, False))
                done = {"snapshot": argv[0]}
            case "destroy":
                WaitForTask(machine(content, argv[0]).Destroy_Task())
                done = {"destroyed": argv[0]}
            case _:
                raise SystemExit(f"unknown verb {verb}")
        print(json.dumps(done))
    finally:
        Disconnect(session)


def machine(content: Any, name: str) -> Any:
    """The VM of that name."""
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    return next(vm for vm in view.view if vm.name == name)


def disks(vm: Any) -> list[Any]:
    """The VM's virtual disks."""
    return [device for device in vm.config.hardware.device if isinstance(device, vim.vm.device.VirtualDisk)]


def end_sessions(manager: Any) -> dict[str, Any]:
    """Ends everybody else's sessions."""
    mine = manager.currentSession.key
    others = [one.key for one in manager.sessionList if one.key != mine]
    manager.TerminateSession(sessionId=others)
    return {"ended": len(others)}


def tracking(vm: Any, on: bool) -> dict[str, Any]:
    """Switches changed block tracking, and makes and removes a snapshot, with which it takes effect."""
    WaitForTask(vm.ReconfigVM_Task(spec=vim.vm.ConfigSpec(changeTrackingEnabled=on)))
    WaitForTask(vm.CreateSnapshot_Task(name="by hand", description="", memory=False, quiesce=False))
    WaitForTask(vm.snapshot.currentSnapshot.RemoveSnapshot_Task(removeChildren=False))
    return {"tracking": bool(vm.config.changeTrackingEnabled)}


def grow(vm: Any, key: int, size: int) -> dict[str, Any]:
    """Makes a disk larger."""
    disk = next(d for d in disks(vm) if d.key == key)
    disk.capacityInBytes, disk.capacityInKB = size, size >> 10
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
    WaitForTask(vm.ReconfigVM_Task(spec=vim.vm.ConfigSpec(deviceChange=[change])))
    return {"capacity": size}


def show(content: Any) -> dict[str, Any]:
    """Every VM: what vCenter says of it."""
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    return {
        vm.name: {
            "uuid": vm.config.uuid,
            "annotation": vm.config.annotation or "",
            "power": str(vm.runtime.powerState),
            "guest": vm.config.guestId,
            "memory": vm.config.hardware.memoryMB,
            "disks": [
                {"key": d.key, "label": d.deviceInfo.label, "capacity": d.capacityInBytes, "path": d.backing.fileName}
                for d in disks(vm)
            ],
        }
        for vm in view.view
    }


def power(vm: Any, on: bool) -> dict[str, Any]:
    """Powers a VM on or off."""
    WaitForTask(vm.PowerOnVM_Task() if on else vm.PowerOffVM_Task())
    return {"power": str(vm.runtime.powerState)}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
