# SPDX-License-Identifier: MIT
"""Changed block tracking as clients see it: epochs and change IDs over the write log, which is always kept.

*Epoch*: the time from one enabling to the next disabling, named by 16 bytes; a reset gives a new one. *Change ID*:
`52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63/81`, the epoch and the write log's sequence number at a snapshot (flows
reference section 5.5). What was asked for takes effect when the VM's disks are opened anew: at power-on, and when a
snapshot is created, removed or reverted to.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator

from fakes.core.fabric import FabricError
from fakes.storage.vm import Vm

_ID = re.compile(r"((?:[0-9a-f]{2} ){7}[0-9a-f]{2})-((?:[0-9a-f]{2} ){7}[0-9a-f]{2})/([0-9]{1,10})", re.IGNORECASE)


def text(epoch: str, sequence: int) -> str:
    """A change ID from an epoch (32 hex digits) and a sequence number."""
    octets = [epoch[at : at + 2] for at in range(0, 32, 2)]
    return f"{' '.join(octets[:8])}-{' '.join(octets[8:])}/{sequence}"


def parse(change_id: str) -> tuple[str, int]:
    """Epoch and sequence number of a change ID; FabricError `malformed` if it is none."""
    match = _ID.fullmatch(change_id)
    if not match:
        raise FabricError("malformed", f"not a change ID: {change_id!r}")
    return (match[1] + match[2]).replace(" ", "").lower(), int(match[3])


def new_epoch() -> str:
    """A name for an epoch that no other has."""
    return "52" + secrets.token_hex(15)


@contextlib.contextmanager
def taking_effect(vm: Vm) -> Iterator[None]:
    """A change of the VM in which its disks are opened anew: tracking becomes what was asked for.

    When the change fails, tracking is again what it was.
    """
    before = {key: disk.epoch for key, disk in vm.disks.items()}
    for disk in vm.disks.values():
        disk.epoch = (disk.epoch or new_epoch()) if vm.tracking else None
    try:
        yield
    except BaseException:
        for key, epoch in before.items():
            vm.disks[key].epoch = epoch
        raise
