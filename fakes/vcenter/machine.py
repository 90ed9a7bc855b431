# SPDX-License-Identifier: MIT
"""*Machine*: a VM as the storage holds it by now, in the shape of the inventory's `VirtualMachine`.

The inventory says what a VM was at first; since then disks may have grown or come, and VMs were made by clients, which
no inventory knows. Whoever shows a VM takes the machine.
"""

from __future__ import annotations

import uuid
from typing import Any

from fakes.core.inventory import Disk, VirtualMachine
from fakes.storage import descriptor


class Machine(VirtualMachine):
    """Disks by what the storage says of them: device keys, labels, and base files below the datastore."""

    folder: str
    keys: tuple[int, ...]
    labels: tuple[str, ...]
    files: tuple[str, ...]
    tracking: bool = False

    def disk_key(self, index: int) -> int:
        return self.keys[index]

    def disk_label(self, index: int) -> str:
        return self.labels[index]

    def disk_file(self, index: int) -> str:
        return self.files[index]


def machine(vm: VirtualMachine, raw: dict[str, Any]) -> Machine:
    """`vm` with the disks and the power that the storage's `vm.get` shows."""
    known = {vm.disk_key(index): disk for index, disk in enumerate(vm.disks)}
    disks = sorted(raw["disks"], key=lambda disk: int(disk["key"]))
    shown = [
        Disk.model_construct(
            size=int(disk["size"]),
            contents="empty",
            thin=known[int(disk["key"])].thin if int(disk["key"]) in known else True,
        )
        for disk in disks
    ]
    # no validation: the storage's sizes are multiples of 512 only, and a VM may have no disk at all
    return Machine.model_construct(
        **{name: getattr(vm, name) for name in VirtualMachine.model_fields if name not in ("disks", "power")},
        power="on" if raw.get("power") in (True, "on", "poweredOn") else "off",
        disks=shown,
        folder=str(raw.get("folder") or vm.name),
        keys=tuple(int(disk["key"]) for disk in disks),
        labels=tuple(str(disk.get("label") or f"Hard disk {int(disk['key']) - 1999}") for disk in disks),
        files=tuple(str((disk.get("chain") or [disk["path"]])[0]) for disk in disks),
        tracking=bool(raw.get("tracking")),
    )


def folder(vm: VirtualMachine) -> str:
    """The VM's folder on its datastore."""
    return vm.folder if isinstance(vm, Machine) else vm.name


def disk_uuid(bios: str, key: int) -> str:
    """A disk's UUID as vSphere writes it (`6000C29…`): that of its descriptor, stable over restarts."""
    digits = descriptor.disk_uuid(str(uuid.UUID(bios)), key).replace(" ", "").replace("-", "")
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
