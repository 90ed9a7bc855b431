# SPDX-License-Identifier: MIT
"""FileManager and VirtualDiskManager work on vcsim's stubs: they must not take away or copy what belongs to a stored VM.

What a disk's descriptor says (UUID, geometry) is answered from the storage's.
"""

from __future__ import annotations

import re

from pyVmomi import vim, vmodl

from fakes.core.fabric import FabricError
from fakes.vcenter import soap
from fakes.vcenter.browsing import Listing, split
from fakes.vcenter.calls import Context, Handler, SoapFault
from fakes.vcenter.http import Reply
from fakes.vcenter.storage import file_fault

# calls that write to or remove files → their parameters that name such files
_CHANGED = {
    "DeleteDatastoreFile_Task": ("name",),
    "MoveDatastoreFile_Task": ("sourceName", "destinationName"),
    "CopyDatastoreFile_Task": ("destinationName",),
    "DeleteVirtualDisk_Task": ("name",),
    "MoveVirtualDisk_Task": ("sourceName", "destName"),
    "CopyVirtualDisk_Task": ("destName",),
    "CreateVirtualDisk_Task": ("name",),
}
# calls that would copy a stub instead of the file
_READ = {"CopyVirtualDisk_Task": "sourceName", "CopyDatastoreFile_Task": "sourceName"}
_DATABASE = re.compile(r'^ddb\.([\w.]+) = "([^"]*)"', re.MULTILINE)


class Files:
    """Passes calls on that do not touch a file of a stored VM."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        checked: dict[str, Handler] = dict.fromkeys(_CHANGED, self.check)
        return checked | {"QueryVirtualDiskUuid": self.uuid, "QueryVirtualDiskGeometry": self.geometry}

    async def check(self, context: Context) -> Reply:
        """Any of these calls: `FileLocked`, or `NotSupported` for a copy."""
        await context.require_login()
        method = context.call.method
        for name in _CHANGED[method]:
            path = context.call.leaf.get(name, "").strip()
            if await self._is_stored(path):
                raise SoapFault(vim.fault.FileLocked(file=path), f"{path} belongs to a virtual machine.")
        path = context.call.leaf.get(_READ.get(method, ""), "").strip()
        if await self._is_stored(path):
            raise SoapFault(vmodl.fault.NotSupported(), "This storage does not copy files of virtual machines.")
        return await context.forward()

    async def uuid(self, context: Context) -> Reply:
        """QueryVirtualDiskUuid(name, datacenter)."""
        told = await self._descriptor(context)
        return (
            await context.forward() if told is None else Reply.xml(200, soap.reply(context.call.method, told["uuid"]))
        )

    async def geometry(self, context: Context) -> Reply:
        """QueryVirtualDiskGeometry(name, datacenter)."""
        told = await self._descriptor(context)
        if told is None:
            return await context.forward()
        cylinders, heads, sectors = (int(told[f"geometry.{part}"]) for part in ("cylinders", "heads", "sectors"))
        value = vim.host.DiskDimensions.Chs(cylinder=cylinders, head=heads, sector=sectors)
        return Reply.xml(200, soap.reply(context.call.method, value))

    async def _descriptor(self, context: Context) -> dict[str, str] | None:
        """The disk database in the descriptor that a call is about; None when the storage has no such disk."""
        await context.require_login()
        path = context.call.leaf.get("name", "").strip()
        if not path.startswith("[") or not path.endswith(".vmdk"):
            return None
        try:
            text = await self._listing.text(*split(path))
        except FabricError as exc:
            raise SoapFault(file_fault(exc, path, split(path)[0])) from exc
        return None if text is None else dict(_DATABASE.findall(text.decode("utf-8", "replace")))

    async def _is_stored(self, path: str) -> bool:
        if not path.startswith("["):
            return False  # an URL, or nothing: vcsim says what is wrong with it
        datastore, below = split(path)
        if not below:
            return self._listing.has(datastore)
        try:
            return await self._listing.is_stored(datastore, below)
        except FabricError as exc:
            raise SoapFault(file_fault(exc, path, datastore)) from exc
