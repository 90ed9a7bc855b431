# SPDX-License-Identifier: MIT
"""What lies in a datastore's folders: the storage's files, and beside them what clients put into vcsim's stub folder.

vcsim's own search finds nothing without a `matchPattern`, knows stubs instead of disks, and names folders in a form that
no vCenter uses. SearchDatastore_Task and SearchDatastoreSubFolders_Task are answered from `Listing`.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim

from fakes.core.inventory import Inventory
from fakes.vcenter import soap
from fakes.vcenter.calls import Context, Handler, SoapFault, invalid_argument
from fakes.vcenter.http import Reply
from fakes.vcenter.running import Owner, Runner, quietly
from fakes.vcenter.world import World

_PATH = re.compile(r"\[([^\[\]/]+)\]\s*(.*)")
_Info = vim.host.DatastoreBrowser
# kind of a file by the end of its name → how it is described, and what asks for such files
_KINDS = {
    ".vmx": (_Info.VmConfigInfo, _Info.VmConfigQuery),
    ".vmdk": (_Info.VmDiskInfo, _Info.VmDiskQuery),
    ".log": (_Info.VmLogInfo, _Info.VmLogQuery),
    ".nvram": (_Info.VmNvramInfo, _Info.VmNvramQuery),
    ".vmsn": (_Info.VmSnapshotInfo, _Info.VmSnapshotQuery),
    ".iso": (_Info.IsoImageInfo, _Info.IsoImageQuery),
    ".img": (_Info.FloppyImageInfo, _Info.FloppyImageQuery),
    ".flp": (_Info.FloppyImageInfo, _Info.FloppyImageQuery),
}
FLAT = "-flat.vmdk"
_EXTENT = re.compile(r".*-(flat|sesparse)\.vmdk")


def split(path: str) -> tuple[str, str]:
    """Datastore, and the path below it (of its root: empty). Raises SoapFault(InvalidDatastorePath)."""
    match = _PATH.fullmatch(path.strip())
    below = posixpath.normpath(match[2].strip("/ ")) if match is not None else ".."
    if match is None or below.startswith(".."):
        value = vim.fault.InvalidDatastorePath(datastorePath=path)
        raise SoapFault(value, f"Invalid datastore path '{path}'.")
    return match[1], "" if below == "." else below


@dataclass(frozen=True)
class Entry:
    """A file or a folder. `capacity`: of a disk file, in bytes; `stored`: the storage has it."""

    name: str
    size: int = 0
    is_folder: bool = False
    modified: datetime | None = None
    capacity: int | None = None
    stored: bool = False


class Listing:
    """Folders of datastores. Raises FabricError, vmodl.MethodFault."""

    def __init__(self, owner: Owner, inventory: Inventory | None) -> None:
        self._owner = owner
        self._stores = frozenset(store.name for store in inventory.datastores) if inventory is not None else frozenset()

    def has(self, datastore: str) -> bool:
        """Whether the storage keeps that datastore."""
        return self._owner.storage is not None and datastore in self._stores

    async def is_stored(self, datastore: str, path: str) -> bool:
        """Whether a folder, a file or the extent of a disk file (below a datastore) is the storage's."""
        storage = self._owner.storage
        if storage is None or not self.has(datastore):
            return False
        if "/" not in path:
            return bool(path) and path in await storage.folder(datastore, "")
        disk = path.removesuffix(FLAT) + ".vmdk" if path.endswith(FLAT) else path
        return await storage.stat(datastore, disk) is not None

    async def text(self, datastore: str, path: str) -> bytes | None:
        """A text file or a descriptor of the storage's; None when it has none of that name."""
        storage = self._owner.storage
        return await storage.read_text(datastore, path) if storage is not None and self.has(datastore) else None

    async def of(self, world: World, datastore: str, folder: str) -> list[Entry]:
        """What is in a folder of a datastore (empty: its root)."""
        entries: dict[str, Entry] = {}
        stored = await self._stored(datastore, folder) if self.has(datastore) else []
        try:
            for each in await self._stubs(world, datastore, folder):
                entries[each.name] = each
        except vim.fault.FileNotFound:
            if not stored:
                raise
        hidden = {each.name for each in stored if each.capacity is not None}
        extents = {f"{name.removesuffix('.vmdk')}-{kind}.vmdk" for name in hidden for kind in ("flat", "sesparse")}
        kept = [each for name, each in entries.items() if name not in extents]
        now = datetime.now(UTC)  # the storage keeps no times; vcsim has one of when the VM was shown
        times = {name: each.modified for name, each in entries.items()}
        found = [replace(each, modified=times.get(each.name, now)) for each in stored]
        return sorted({each.name: each for each in (*kept, *found)}.values(), key=lambda each: each.name)

    async def _stored(self, datastore: str, folder: str) -> list[Entry]:
        storage = self._owner.storage
        if storage is None or "/" in folder:
            return []
        names = await storage.folder(datastore, folder)
        if not folder:
            return [Entry(name, is_folder=True, stored=True) for name in names]
        entries: list[Entry] = []
        for name in names:
            stat = await storage.stat(datastore, f"{folder}/{name}")
            text = await storage.read_text(datastore, f"{folder}/{name}")
            if stat is None or text is None:
                continue  # merged away meanwhile
            capacity = int(stat["size"]) if stat["kind"] == "disk" else None
            entries.append(Entry(name, len(text), capacity=capacity, stored=True))
            if capacity is not None:
                entries.append(Entry(extent(text.decode()), capacity, stored=True))
        return entries

    async def _stubs(self, world: World, datastore: str, folder: str) -> list[Entry]:
        browser = (await world.admin.properties(world.places.datastores[datastore], "browser"))["browser"]
        spec = _Info.SearchSpec(
            matchPattern=["*"], details=_Info.FileInfo.Details(fileType=True, fileSize=True, modification=True)
        )
        path = f"[{datastore}] {folder}"
        task = await world.admin.call(browser, "SearchDatastore_Task", datastorePath=path, searchSpec=spec)
        return [
            Entry(each.path, int(each.fileSize or 0), isinstance(each, _Info.FolderInfo), each.modification)
            for each in (await quietly(world, task)).file
        ]


def extent(descriptor: str) -> str:
    """The file that holds a disk file's own blocks, as its descriptor names it."""
    match = re.search(r'^RW \d+ \w+ "([^"]+)"', descriptor, re.MULTILINE)
    return match[1] if match else ""


class Browsing:
    """The two calls, on a vCenter for datastores that the storage keeps; elsewhere vcsim's, with a pattern."""

    def __init__(self, owner: Owner, runner: Runner, listing: Listing) -> None:
        self._owner = owner
        self._runner = runner
        self._listing = listing

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return {"SearchDatastore_Task": self.search, "SearchDatastoreSubFolders_Task": self.search}

    async def search(self, context: Context) -> Reply:
        """Either call (datastorePath, searchSpec)."""
        values = soap.arguments(context.raw)
        world, path = context.world, values.get("datastorePath")
        if not path:
            raise invalid_argument("datastorePath")
        spec = values.get("searchSpec") or _Info.SearchSpec()
        datastore, folder = split(path)
        browser = world.admin.object("HostDatastoreBrowser", context.call.this_id)
        if not self._listing.has(datastore) or not self._owner.owns_tasks:
            await context.require_login()
            spec.matchPattern = spec.matchPattern or ["*"]
            task = await context.session.call(browser, context.call.method, datastorePath=path, searchSpec=spec)
            return Reply.xml(200, soap.reply(context.call.method, task))
        recurse = context.call.method == "SearchDatastoreSubFolders_Task"

        async def work() -> tuple[Any, Any]:
            results = [each async for each in self._results(world, datastore, folder, spec, recurse)]
            return _Info.SearchResults.Array(results) if recurse else results[0], None

        return await self._runner.run(context, world.places.datastores[datastore], work, {"path": path})

    async def _results(self, world: World, datastore: str, folder: str, spec: Any, recurse: bool) -> AsyncIterator[Any]:
        entries = await self._listing.of(world, datastore, folder)
        yield _Info.SearchResults(
            datastore=world.places.datastores[datastore],
            folderPath=f"[{datastore}] {folder}/" if folder else f"[{datastore}] ",
            file=[described(each, spec) for each in entries if wanted(each, spec)],
        )
        for each in entries if recurse else ():
            if each.is_folder:
                below = f"{folder}/{each.name}" if folder else each.name
                async for result in self._results(world, datastore, below, spec, recurse):
                    yield result


def wanted(entry: Entry, spec: Any) -> bool:
    """Whether a search asks for that file, by its patterns and its queries."""
    exact = spec.searchCaseInsensitive is False
    name = entry.name if exact else entry.name.lower()
    patterns = spec.matchPattern or ["*"]
    if not any(fnmatch.fnmatchcase(name, each if exact else each.lower()) for each in patterns):
        return False
    return not spec.query or any(_asks(each, entry) for each in spec.query)


def _asks(query: Any, entry: Entry) -> bool:
    if type(query) is _Info.Query:
        return True
    if entry.is_folder:
        return isinstance(query, _Info.FolderQuery)
    kind = _KINDS.get(entry.name[entry.name.rfind(".") :])
    return kind is not None and type(query) is kind[1] and not _EXTENT.fullmatch(entry.name)


def described(entry: Entry, spec: Any) -> Any:
    """A file as the search wants it told."""
    details = spec.details or _Info.FileInfo.Details()
    kind = _Info.FileInfo
    if entry.is_folder:
        kind = _Info.FolderInfo
    elif (details.fileType or spec.query) and not _EXTENT.fullmatch(entry.name):
        kind = _KINDS.get(entry.name[entry.name.rfind(".") :], (kind, None))[0]
    told = kind(path=entry.name)
    if details.fileSize:
        # a search for disks shows them as one file
        whole = kind is _Info.VmDiskInfo and spec.query and entry.capacity is not None
        told.fileSize = entry.capacity if whole else entry.size
    if details.modification:
        told.modification = entry.modified
    if details.fileOwner:
        told.owner = "root"
    if kind is _Info.VmDiskInfo and entry.capacity is not None:
        told.capacityKb, told.thin = entry.capacity >> 10, True
        told.diskType = vim.vm.device.VirtualDisk.FlatVer2BackingInfo
    return told
