# SPDX-License-Identifier: MIT
"""The engine's side of vSphere: pyVmomi over sockets that the dialer opened. Blocking, except for `link`.

session     connection, login, calls, tasks, properties      objects   VmInfo, Disk, GuestInfo, Snapshot
operations  `VSphere`: inventory, snapshots, devices         tracking  changed block tracking
link        the same for asyncio, in threads                 faults    what vCenter refuses or does not do in time
"""

from engine.vsphere.faults import ObjectNotFound, TaskTimedOut, VSphereFault
from engine.vsphere.objects import Disk, GuestInfo, Snapshot, VmInfo
from engine.vsphere.operations import VSphere
from engine.vsphere.session import thumbprint_matches

__all__ = [
    "Disk",
    "GuestInfo",
    "ObjectNotFound",
    "Snapshot",
    "TaskTimedOut",
    "VSphere",
    "VSphereFault",
    "VmInfo",
    "thumbprint_matches",
]
