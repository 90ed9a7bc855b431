# SPDX-License-Identifier: MIT
"""A vCenter in memory: the calls of `VSphere` that HotAdd makes, and a folder in which attached disks appear."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

from pyVmomi import vim

from engine.events import EventLog
from engine.modes import hotadd
from engine.modes.device import DeviceSource

PATH = "[datastore1] web/web-000001.vmdk"
OWN = "[datastore1] proxy-2/proxy-2.vmdk"
SIZE = 2 << 20


class MemoryVCenter:
    """The calls of `VSphere` that HotAdd makes. `content`: what a disk file shows once it is attached; None: no device appears."""

    def __init__(self, folder: Path, content: bytes | None = None, *, path: str = PATH) -> None:
        self.name = "vcenter"
        self.path = path
        self.uuid = str(uuid.uuid4())
        self.folder = folder
        self.content = content
        self.refuse: dict[str, Exception] = {}
        self.calls: list[str] = []
        self.controllers = [
            vim.vm.device.ParaVirtualSCSIController(key=1000, scsiCtlrUnitNumber=7, sharedBus="noSharing")
        ]
        self.disks: list[Any] = [self.disk(OWN, "persistent", 0, "a" * 32)]
        self.logged_out = False

    def disk(self, path: str, mode: str, unit: int, identity: str) -> Any:
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=path, diskMode=mode, uuid=identity)
        return vim.vm.device.VirtualDisk(
            key=2000 + unit, controllerKey=1000, unitNumber=unit, backing=backing, capacityInKB=SIZE // 1024
        )

    def where(self, step: str | None = None) -> dict[str, Any]:
        return {"step": step, "host": "proxy-2", "target": self.name, "port": 443}

    def find_by_uuid(self, uuid: str, *, step: str) -> str | None:
        return "vm-2" if uuid.lower() == self.uuid.lower() else None

    def devices(self, vm: str, *, step: str) -> list[Any]:
        assert vm == "vm-2"
        return [*self.controllers, *self.disks]

    def vmx_path(self, vm: str, *, step: str) -> str:
        return "[datastore1] proxy-2/proxy-2.vmx"

    def reconfigure(self, vm: str, changes: list[Any], *, step: str, timeout: float) -> None:
        (change,) = changes
        self.calls.append(f"{change.operation} {change.device.backing.fileName}")
        if error := self.refuse.get(change.operation):
            raise error
        path = change.device.backing.fileName
        if change.operation == "remove":
            (gone,) = (d for d in self.disks if d.key == change.device.key)
            self.disks.remove(gone)
            self.link(gone).unlink(missing_ok=True)
            return
        made = self.disk(path, change.device.backing.diskMode, change.device.unitNumber, "6000c29" + "b" * 25)
        self.disks.append(made)
        if self.content is not None:
            self.link(made).write_bytes(self.content)

    def link(self, disk: Any) -> Path:
        return self.folder / f"wwn-0x{hotadd.identity_of(disk)}"

    def at(self, step: str) -> Any:
        return threading.Lock()

    def logout(self) -> None:
        self.logged_out = True

    def open(self, capacity: int = SIZE) -> DeviceSource:
        log = EventLog(None, host="proxy-2", process="test")
        proxy = self.uuid.upper(), self.folder
        return hotadd.open_source(self, proxy, self.path, capacity, None, log)  # type: ignore[arg-type]
