# SPDX-License-Identifier: MIT
"""FileManager and VirtualDiskManager work on vcsim's stubs: they must not take away or copy what belongs to a stored VM."""

from __future__ import annotations

from pyVmomi import vim, vmodl

from fakes.core.fabric import FabricError
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


class Files:
    """Passes calls on that do not touch a file of a stored VM."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return dict.fromkeys(_CHANGED, self.check)

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

    async def _is_stored(self, path: str) -> bool:
        if not path.startswith("["):
            return False  # an URL, or nothing: vcsim says what is wrong with it
        datastore, below = split(path)
        try:
            return await self._listing.is_stored(datastore, below)
        except FabricError as exc:
            raise SoapFault(file_fault(exc, path, datastore)) from exc
