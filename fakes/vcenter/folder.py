# SPDX-License-Identifier: MIT
"""`/folder`: files of datastores over HTTP (API: "HTTP access to vSphere server files").

What belongs to a VM comes from the storage: `.vmx`, descriptors, and a base disk's contents as its `-flat.vmdk`, of which
a part may be asked for; nobody but the VM changes it. All other files are vcsim's. A folder is an HTML list of links.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from pyVmomi import vim, vmodl

from fakes.core.fabric import FabricError
from fakes.vcenter import contents
from fakes.vcenter.browsing import FLAT, Entry, Listing
from fakes.vcenter.http import Headers, Reply, Request
from fakes.vcenter.passing import pass_on
from fakes.vcenter.running import Owner, quietly
from fakes.vcenter.world import World

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class _Place:
    """What a URL names: `path` below a datastore; a datacenter or a datastore that is not told is empty."""

    datacenter: str
    datastore: str
    path: str


class Folder:
    """Requests below `/folder`. `datacenter` is the one that there is, by its path."""

    def __init__(self, owner: Owner, listing: Listing, datacenter: str) -> None:
        self._owner = owner
        self._listing = listing
        self._datacenter = datacenter

    async def handle(self, world: World, request: Request, path: str) -> Reply:
        """A request that may go on; `path` is that of its target, decoded. Raises UpstreamGone, TimeoutError."""
        query = parse_qs(urlsplit(request.target).query)
        datacenter, datastore = ((query.get(key) or [""])[0].strip("/") for key in ("dcPath", "dsName"))
        place = _Place(datacenter, datastore, path.removeprefix("/folder").strip("/"))
        reads = request.method in ("GET", "HEAD")
        if not all(char.isprintable() for char in place.path):
            return Reply.text(400, "not the name of a file")
        try:
            if self._listing.has(place.datastore):
                if place.datacenter not in ("", self._datacenter):
                    return Reply.text(404, f"no datacenter {place.datacenter}")
                if reads and (found := await self._stored(request, place)) is not None:
                    return found
                if not reads and await self._listing.is_stored(place.datastore, place.path):
                    return Reply.text(403, f"[{place.datastore}] {place.path} belongs to a virtual machine")
            if request.method == "DELETE":
                return await self._delete(world, place)
            if reads and not place.path:
                return await self._list(world, place)
            reply = await pass_on(world.upstream, request, self._owner.spawn)
            return await self._list(world, place) if reads and reply.status == 301 else reply
        except FabricError as exc:
            return Reply.text(403 if exc.code in ("locked", "in-use") else 500, str(exc))
        except vmodl.MethodFault as exc:
            return Reply.text(400, exc.msg or type(exc).__name__)

    async def _stored(self, request: Request, place: _Place) -> Reply | None:
        """A file that the storage has; None when it has none of that name."""
        storage = self._owner.storage
        assert storage is not None
        if "/" not in place.path:
            return None
        if place.path.endswith(FLAT):
            disk = place.path.removesuffix(FLAT) + ".vmdk"
            descriptor = await storage.read_text(place.datastore, disk)
            if descriptor is None or f'"{place.path.rpartition("/")[2]}"'.encode() not in descriptor:
                return None
            return ranged(request, *await storage.export(place.datastore, disk))
        text = await storage.read_text(place.datastore, place.path)
        kind = "application/octet-stream"
        return None if text is None else Reply(200, Headers([("Content-Type", kind)]), text)

    async def _delete(self, world: World, place: _Place) -> Reply:
        """vcsim would answer DELETE with the file."""
        manager = world.admin.content.fileManager
        datacenter: Any = world.places.datacenter
        try:
            if datacenter is None:
                index = world.admin.content.searchIndex
                datacenter = await world.admin.call(index, "FindByInventoryPath", inventoryPath=place.datacenter)
            name = f"[{place.datastore}] {place.path}"
            task = await world.admin.call(manager, "DeleteDatastoreFile_Task", name=name, datacenter=datacenter)
            await quietly(world, task)
        except (vim.fault.FileNotFound, vim.fault.InvalidDatastore, vmodl.fault.InvalidArgument) as exc:
            return Reply.text(404, exc.msg or "not found")
        return Reply(204)

    async def _list(self, world: World, place: _Place) -> Reply:
        """Links to datacenters, to datastores of one, to what is in a folder of one."""
        if not world.places.datastores:
            return Reply.text(404, "nothing is listed here")
        if not place.datastore:
            names = list(world.places.datastores) if place.datacenter else [self._datacenter]
            key = "dsName" if place.datacenter else "dcPath"
            known = {"dcPath": place.datacenter} if place.datacenter else {}
            return _page("", [(name, f"/folder?{urlencode({**known, key: name})}", None) for name in names])
        if place.datastore not in world.places.datastores:
            return Reply.text(404, f"no datastore {place.datastore}")
        try:
            entries: list[Entry] = await self._listing.of(world, place.datastore, place.path)
        except vim.fault.FileNotFound:
            return Reply.text(404, f"[{place.datastore}] {place.path} is not there")
        query = urlencode({"dcPath": place.datacenter or self._datacenter, "dsName": place.datastore})
        below = quote(f"/folder/{place.path}/" if place.path else "/folder/")
        links = [
            (
                each.name + ("/" if each.is_folder else ""),
                f"{below}{quote(each.name)}{'/' if each.is_folder else ''}?{query}",
                None if each.is_folder else each.size,
            )
            for each in entries
        ]
        return _page(f"[{place.datastore}] {place.path}", links)


def ranged(request: Request, socket: Any, export: str, size: int) -> Reply:
    """The contents of an export, or the one range of it that a request asks for."""
    headers = [("Content-Type", "application/octet-stream"), ("Accept-Ranges", "bytes")]
    match = _RANGE.fullmatch((request.headers.get("range") or "").strip())
    if match is None or not (match[1] or match[2]):
        return Reply(200, Headers(headers), contents.pieces(socket, export, 0, size), length=size)
    first = int(match[1]) if match[1] else max(0, size - int(match[2]))
    last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
    if first > last:
        return Reply.text(416, "no such range", ("Content-Range", f"bytes */{size}"))
    headers.append(("Content-Range", f"bytes {first}-{last}/{size}"))
    length = last - first + 1
    return Reply(206, Headers(headers), contents.pieces(socket, export, first, length), length=length)


def _page(title: str, links: list[tuple[str, str, int | None]]) -> Reply:
    rows = "".join(
        f'<tr><td><a href="{html.escape(target)}">{html.escape(name)}</a></td>'
        f'<td align="right">{"-" if size is None else size}</td></tr>\n'
        for name, target, size in links
    )
    title = html.escape(f"Index of {title}")
    text = (
        f"<html><head><title>{title}</title></head><body>\n<h1>{title}</h1>\n<table>\n{rows}</table>\n</body></html>\n"
    )
    return Reply(200, Headers([("Content-Type", "text/html; charset=utf-8")]), text.encode())
