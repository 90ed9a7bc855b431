# SPDX-License-Identifier: MIT
"""What must not reach vcsim as it is: keys that drive the simulator itself, and changes of a VM beside a snapshot."""

from __future__ import annotations

import re

from pyVmomi import vmodl

from fakes.vcenter.calls import SoapFault
from fakes.vcenter.soap import Call

# `SET.` writes any property and a wrong one ends vcsim; `RUN.` starts containers; `ip0` is an alias of a `SET.` key
# (vcsim reference sections 11 and 12)
_DRIVING = re.compile(r"^(SET\.|RUN\.)|^ip0$", re.IGNORECASE)

# tasks that change a VM: one at a time and not while a snapshot is being made (vcsim reference section 9)
EXCLUSIVE = frozenset(
    (
        "ReconfigVM_Task",
        "ResetVM_Task",
        "RelocateVM_Task",
        "MigrateVM_Task",
        "Destroy_Task",
        "Rename_Task",
    )
)
POWER = {"PowerOnVM_Task": True, "PowerOffVM_Task": False, "SuspendVM_Task": False}

# vcsim's own pages, which no vCenter has; the first is shown where the inventory is vcsim's own too
HIDDEN_PATHS = ("/about", "/debug")
# served by vcsim without asking for a session
SESSION_PATHS = ("/folder", "/nfc", "/guestFile")


def check_keys(call: Call) -> None:
    """Raises SoapFault(InvalidArgument) when a client sends a key that drives the simulator."""
    for key in call.option_keys:
        if _DRIVING.search(key):
            raise SoapFault(
                vmodl.fault.InvalidArgument(invalidProperty="extraConfig"),
                f"The key {key[:64]!r} is reserved and can not be set by a client.",
            )
