# SPDX-License-Identifier: MIT
"""The fabric socket of a datastore: the messages of `docs/architecture.md`, answered inside nbdkit's process.

The asyncio server runs in a thread of its own; each request does its work in a worker thread, so that a long one
(waiting for a truth record, making a disk) holds up no other.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes.core import fabric
from fakes.core.fabric import FabricError
from fakes.storage import changes, grains, machines, paths, reverting, sanmap, snapshots, tracking
from fakes.storage.datastore import Datastore
from fakes.storage.exports import Exports
from fakes.storage.hotadd import HotAdd
from fakes.storage.vm import Vm

_START_SECONDS = 10.0


class Service:
    """Answers the fabric messages of one datastore."""

    def __init__(self, store: Datastore) -> None:
        self.store = store
        self.exports = Exports(store)
        self.hotadd = HotAdd(store, self.exports)
        self._methods: dict[str, Callable[..., Any]] = {
            "datastore.info": self._datastore_info,
            "vm.list": self._vm_list,
            "vm.get": self._vm_get,
            "vm.create": self._vm_create,
            "vm.power": self._vm_power,
            "vm.delete": self._vm_delete,
            "snapshot.create": self._snapshot_create,
            "snapshot.remove": self._snapshot_remove,
            "snapshot.revert": self._snapshot_revert,
            "snapshot.label": self._snapshot_label,
            "snapshot.rename": self._snapshot_rename,
            "file.list": self._file_list,
            "file.stat": self._file_stat,
            "file.read": self._file_read,
            "file.write": self._file_write,
            "disk.resolve": self._disk_resolve,
            "disk.extents": self._disk_extents,
            "disk.changed": self._disk_changed,
            "disk.tracking": self._disk_tracking,
            "disk.create": self._disk_create,
            "disk.grow": self._disk_grow,
            "disk.attach": self.hotadd.attach,
            "disk.detach": self.hotadd.detach,
            "disk.attachments": self.hotadd.attachments,
            "truth.get": self._truth_get,
        }

    async def handle(self, method: str, params: dict[str, Any]) -> Any:
        """Answers one request; FabricError for what is refused."""
        work = self._methods.get(method)
        if work is None:
            raise FabricError("unknown-method", f"storage has no method {method!r}")
        try:
            return await asyncio.to_thread(work, **params)
        except TimeoutError as exc:
            raise FabricError("busy", f"{method}: {exc}") from exc
        except OSError as exc:
            code = "no-space" if exc.errno == errno.ENOSPC else "io-error"
            raise FabricError(code, f"{method}: {exc.strerror or exc}") from exc

    # -- datastore and VMs -------------------------------------------------------------------------------------------

    def _datastore_info(self) -> dict[str, Any]:
        lun = self.store.lun
        return {
            "name": self.store.name,
            "capacity": lun.capacity,
            "free": lun.free,
            "lun": {"path": str(lun.path.absolute()), "size": lun.capacity, "naa": self.store.naa},
        }

    def _vm_list(self) -> list[dict[str, Any]]:
        with self.store.lock:
            return [self._shown(vm) for vm in self.store.vms.values()]

    def _vm_get(self, vm: str) -> dict[str, Any]:
        with self.store.lock:
            return self._shown(self.store.vm(vm))

    def _shown(self, vm: Vm) -> dict[str, Any]:
        return {
            "vm": vm.name,
            "uuid": vm.uuid,
            "folder": vm.folder,
            "power": "on" if vm.power else "off",
            "tracking": vm.tracking,
            "disks": [
                {
                    "key": disk.key,
                    "label": disk.label,
                    "path": disk.top.name,
                    "size": disk.size,
                    "chain": [layer.name for layer in disk.chain],
                    "tracked": disk.epoch is not None,
                    # everything since the last snapshot counts as changed since then
                    "change_id": tracking.text(disk.epoch, disk.sequence - 1) if disk.epoch else None,
                }
                for disk in vm.disks.values()
            ],
            "snapshots": [snapshots.shown(vm, each) for each in vm.snapshots],
            "current": vm.snapshots[-1].id if vm.snapshots else None,
        }

    def _vm_create(
        self, vm: str, uuid: str, disks: list[dict[str, Any]], files: dict[str, str] | None = None, **more: Any
    ) -> dict[str, Any]:
        if any("image" in disk for disk in disks):
            raise FabricError("bad-contents", "vm.create takes no image: only a disk alone does")
        made = machines.create(self.store, vm, uuid, disks, files or {}, **more)
        with self.store.lock:
            return self._shown(made)

    def _vm_power(self, vm: str, on: bool) -> None:
        if not isinstance(on, bool):
            raise FabricError("malformed", f"vm.power: `on` is true or false, not {on!r}")
        self.store.set_power(self.store.vm(vm), on)

    def _vm_delete(self, vm: str) -> None:
        with self.store.lock:
            machines.delete(self.store, self.store.vm(vm))

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def _snapshot_create(self, vm: str, name: str, description: str = "") -> dict[str, Any]:
        with self.store.lock:
            found = self.store.vm(vm)
            return snapshots.shown(found, snapshots.create(self.store, found, name, description))

    def _snapshot_remove(self, vm: str, id: int | str, children: bool = False) -> None:
        with self.store.lock:
            snapshots.remove(self.store, self.store.vm(vm), int(id), children=children)

    def _snapshot_revert(self, vm: str, id: int | str, discard_later: bool = False) -> dict[str, Any]:
        with self.store.lock:
            found = self.store.vm(vm)
            reverting.revert(self.store, found, int(id), discard_later=discard_later)
            return self._shown(found)

    def _snapshot_label(self, vm: str, id: int | str, ref: str | None) -> None:
        with self.store.lock:
            snapshots.label(self.store, self.store.vm(vm), int(id), ref)

    def _snapshot_rename(self, vm: str, id: int | str, name: str | None = None, description: str | None = None) -> None:
        with self.store.lock:
            snapshots.rename(self.store, self.store.vm(vm), int(id), name, description)

    # -- files -------------------------------------------------------------------------------------------------------

    def _file_list(self, path: str = "") -> list[str]:
        """Names in a folder; of the root (empty path): the folders."""
        with self.store.lock:
            known = set(self.store.files.names())
            known |= {la.name for vm in self.store.vms.values() for d in vm.disks.values() for la in d.chain}
        if path in ("", "/"):
            return sorted({each.partition("/")[0] for each in known})
        folder = paths.checked(path.rstrip("/"), parts=1)
        names = sorted(name for at, _, name in (each.partition("/") for each in known) if at == folder)
        if not names:
            raise FabricError("not-found", f"no folder {folder} on {self.store.name}")
        return names

    def _file_stat(self, path: str) -> dict[str, Any]:
        paths.checked(path)
        with self.store.lock:
            if found := self.store.find(path):
                return {"size": found[1].size, "kind": "disk"}
            if sanmap.exists(self.store, path):
                return {"size": len(sanmap.content(self.store, path)), "kind": "text"}
            return {"size": len(self.store.files.read(path)), "kind": "text"}

    def _file_read(self, path: str) -> str:
        paths.checked(path)
        with self.store.lock:
            if found := self.store.find(path):
                data = self.store.descriptor(*found).encode()
            elif sanmap.exists(self.store, path):
                data = sanmap.content(self.store, path)
            else:
                data = self.store.files.read(path)
        return base64.b64encode(data).decode()

    def _file_write(self, path: str, data: str) -> None:
        paths.checked(path)
        try:
            content = base64.b64decode(data, validate=True)
        except binascii.Error as exc:
            raise FabricError("malformed", f"file.write: not base64: {exc}") from None
        with self.store.lock:
            if self.store.find(path):
                raise FabricError("is-disk", f"{path} is a disk: its data goes through its export")
            if sanmap.exists(self.store, path):
                raise FabricError("read-only", f"{path} is the map of a disk, made at each read")
            self.store.files.write(path, content)

    # -- disks -------------------------------------------------------------------------------------------------------

    def _disk_resolve(self, path: str, write: bool = False) -> dict[str, Any]:
        return dict(self.exports.resolve(path, write=write))

    def _disk_extents(self, path: str) -> list[list[int]]:
        paths.checked(path)
        with self.store.lock:
            found = self.store.find(path)
            if not found:
                raise FabricError("not-found", f"no disk file {path} on {self.store.name}")
            _, disk, layer = found
            view = disk.frozen_view(layer)[:]
        return grains.byte_ranges(grains.used(view), disk.size)

    def _disk_changed(self, vm: str, key: int, since: int | str, id: int | str | None = None) -> list[list[int]]:
        if isinstance(since, bool) or not isinstance(since, int | str) or (isinstance(since, int) and since < 0):
            raise FabricError("malformed", f"disk.changed: `since` is a sequence, a change ID or *, not {since!r}")
        number = None if id is None else int(id)
        return changes.changed(self.store, self.store.vm(vm), int(key), since, number)

    def _disk_tracking(self, vm: str, on: bool) -> dict[str, Any]:
        if not isinstance(on, bool):
            raise FabricError("malformed", f"disk.tracking: `on` is true or false, not {on!r}")
        with self.store.lock:
            found = self.store.vm(vm)
            self.store.ask_tracking(found, on)
            return self._shown(found)

    def _disk_create(self, vm: str, **spec: Any) -> dict[str, Any]:
        if "image" in spec:
            raise FabricError("bad-contents", "disk.create takes no image: only a disk alone does")
        with self.store.lock:
            found = self.store.vm(vm)
            machines.add_disk(self.store, found, spec)
            return self._shown(found)

    def _disk_grow(self, vm: str, key: int, size: int) -> dict[str, Any]:
        with self.store.lock:
            found = self.store.vm(vm)
            machines.grow(self.store, found, int(key), int(size))
            return self._shown(found)

    def _truth_get(self, vm: str, id: int | str, wait: float = 0) -> dict[str, Any]:
        return self.store.truth.get(paths.checked_name(vm, "VM"), int(id), float(wait))


class FabricThread:
    """Serves a `Service` on a Unix socket from a thread with an event loop of its own."""

    def __init__(self, service: Service, path: Path) -> None:
        self._service = service
        self._path = path
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fabric", daemon=True)

    def start(self) -> None:
        """Returns once the socket answers. Raises what kept it from listening."""
        self._thread.start()
        if not self._started.wait(_START_SECONDS):
            raise TimeoutError(f"the fabric socket {self._path} did not come up")
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """Stops serving and removes the socket."""
        if self._loop and self._stop:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5.0)
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as exc:
            self._failure = exc
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await fabric.serve(self._path, self._service.handle)
        self._started.set()
        await self._stop.wait()
        server.close()
