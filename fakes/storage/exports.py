# SPDX-License-Identifier: MIT
"""NBD exports: `live/<vm>/<key>` follows the top of a disk's chain; `file/<folder>/<name>.vmdk` is the chain that ends
there; `attached/<by>/<folder>/<name>.vmdk` is the same file as the VM sees it to which it is attached.
"""

from __future__ import annotations

import errno
import os

from fakes.core.fabric import FabricError
from fakes.storage import paths
from fakes.storage.attachments import PREFIX
from fakes.storage.datastore import Datastore
from fakes.storage.handles import AttachedHandle, Handle


class Exports:
    """The export names of a datastore."""

    def __init__(self, store: Datastore) -> None:
        self._store = store

    def names(self) -> list[tuple[str, str]]:
        """`(name, description)` of all exports, live disks first."""
        with self._store.lock:
            live = [
                (f"live/{vm.name}/{disk.key}", f"{vm.name}: {disk.label}")
                for vm in self._store.vms.values()
                for disk in vm.disks.values()
            ]
            files = [
                (f"file/{layer.name}", f"{vm.name}: {disk.label}, {'top' if layer is disk.top else 'frozen'}")
                for vm in self._store.vms.values()
                for disk in vm.disks.values()
                for layer in disk.chain
            ]
            attached = [(each.export, f"attached to {each.record.by}") for each in self._store.attachments.all()]
        return live + files + attached

    def open(self, name: str) -> Handle | AttachedHandle:
        """Opens an export.

        Raises:
            OSError: ENOENT for an unknown name, EBUSY for the locked top layer of a running VM.
        """
        kind, _, rest = name.partition("/")
        with self._store.lock:
            if kind == "live":
                vm_name, _, key = rest.rpartition("/")
                vm = self._store.vms.get(vm_name)
                disk = vm.disks.get(int(key)) if vm and key.isascii() and key.isdigit() else None
                if vm and disk:
                    return Handle(vm, disk, None)
            elif kind == "file" and (found := self._store.find(rest)):
                vm, disk, layer = found
                if layer is disk.top and vm.power:
                    raise OSError(errno.EBUSY, f"{rest} is locked by its running VM")
                return Handle(vm, disk, layer)
            elif (
                kind == PREFIX
                and (attachment := self._store.attachments.by_export(name))
                and (found := self._store.find(attachment.record.path))
            ):
                return AttachedHandle(Handle(*found), attachment)
        raise OSError(errno.ENOENT, f"{os.strerror(errno.ENOENT)}: export {name!r}")

    def resolve(self, path: str, *, write: bool) -> dict[str, object]:
        """Which export shows the disk file `path`, and whether it may be written.

        Raises:
            FabricError: `bad-path`, `not-found`, `locked`, `read-only`.
        """
        paths.checked(path)
        with self._store.lock:
            found = self._store.find(path)
            if not found:
                raise FabricError("not-found", f"no disk file {path} on {self._store.name}")
            vm, disk, layer = found
            if layer is disk.top and vm.power:
                raise FabricError("locked", f"{path} is the running disk of {vm.name}")
            if write and layer is not disk.top:
                raise FabricError("read-only", f"{path} is frozen by a snapshot of {vm.name}")
            if write and any(each.record.path == path for each in self._store.attachments.all()):
                raise FabricError("locked", f"{path} is attached to another VM")
            return {
                "export": f"file/{path}",
                "size": disk.size,
                "vm": vm.name,
                "key": disk.key,
                "writable": layer is disk.top,
            }
