# SPDX-License-Identifier: MIT
"""Storage and hosts in memory, with the semantics of docs/architecture.md, so that the gateway is tested by itself.

The storage keeps real chains: freezing adds a layer to every disk, removal merges the layer above into the frozen one
(so frozen names of later snapshots change, as they do on a real chain).
"""

from __future__ import annotations

import asyncio
import base64
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fakes.core.fabric import FabricError, serve


class StorageDouble:
    """One datastore. `fail` maps a method to the error code it answers with; `log` holds the methods that had an effect."""

    def __init__(self) -> None:
        self.vms: dict[str, dict[str, Any]] = {}
        self.fail: dict[str, str] = {}
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.hold: asyncio.Event | None = None

    async def __call__(self, method: str, params: dict[str, Any]) -> Any:
        if method in self.fail:
            raise FabricError(self.fail[method], f"{method} refused by the test")
        if self.hold is not None and method == "snapshot.create":
            await self.hold.wait()
        result = getattr(self, method.replace(".", "_"))(**params)
        if not method.endswith((".get", ".stat", ".read", ".list", ".info", ".attachments")):
            self.log.append((method, params))
        return result

    def _vm(self, name: str) -> dict[str, Any]:
        if name not in self.vms:
            raise FabricError("not-found", f"no VM {name}")
        return self.vms[name]

    def vm_get(self, vm: str) -> dict[str, Any]:
        held = self._vm(vm)
        disks = [
            {**disk, "path": disk["layers"][-1], "chain": list(disk["layers"]), "layers": None}
            for disk in held["disks"]
        ]
        return {**held, "disks": disks, "snapshots": [self._shown(held, s) for s in held["snapshots"]]}

    @staticmethod
    def _shown(held: dict[str, Any], snapshot: dict[str, Any]) -> dict[str, Any]:
        level = held["snapshots"].index(snapshot)
        disks = [
            {"key": d["key"], "frozen": d["layers"][level], "live": d["layers"][-1], "sequence": 0}
            for d in held["disks"]
        ]
        return {**snapshot, "disks": disks}

    def vm_create(self, vm: str, uuid: str, disks: list[dict[str, Any]], files: dict[str, str]) -> dict[str, Any]:
        if vm in self.vms:
            raise FabricError("exists", f"{vm} exists")
        self.vms[vm] = {
            "vm": vm,
            "uuid": uuid,
            "folder": vm,
            "power": "off",
            "disks": [{"key": d["key"], "label": d["label"], "size": d["size"], "layers": [d["file"]]} for d in disks],
            "snapshots": [],
            "current": None,
            "files": files,
            "next": 1,
        }
        return self.vm_get(vm)

    def vm_power(self, vm: str, on: bool) -> None:
        self._vm(vm)["power"] = "on" if on else "off"

    def snapshot_create(self, vm: str, name: str, description: str) -> dict[str, Any]:
        held = self._vm(vm)
        snapshot = {
            "id": held["next"],
            "name": name,
            "description": description,
            "created": "2026-01-01T00:00:00Z",
            "parent": held["snapshots"][-1]["id"] if held["snapshots"] else None,
            "ref": None,
        }
        for disk in held["disks"]:
            disk["layers"].append(disk["layers"][0].replace(".vmdk", f"-{held['next']:06d}.vmdk"))
        held["next"] += 1
        held["snapshots"].append(snapshot)
        held["current"] = snapshot["id"]
        return self._shown(held, snapshot)

    def snapshot_remove(self, vm: str, id: int, children: bool) -> None:
        held = self._vm(vm)
        level = next((i for i, s in enumerate(held["snapshots"]) if s["id"] == id), None)
        if level is None:
            raise FabricError("not-found", f"no snapshot {id}")
        last = len(held["snapshots"]) if children else level + 1
        del held["snapshots"][level:last]
        for disk in held["disks"]:
            del disk["layers"][level + 1 : last + 1]
        held["current"] = held["snapshots"][-1]["id"] if held["snapshots"] else None

    def snapshot_label(self, vm: str, id: int, ref: str) -> None:
        next(s for s in self._vm(vm)["snapshots"] if s["id"] == id)["ref"] = ref

    def snapshot_rename(self, vm: str, id: int, name: str | None, description: str | None) -> None:
        held = next(s for s in self._vm(vm)["snapshots"] if s["id"] == id)
        held |= {k: v for k, v in (("name", name), ("description", description)) if v is not None}

    def vm_list(self) -> list[dict[str, Any]]:
        return [self.vm_get(name) for name in self.vms]

    def disk_attachments(self, by: str) -> list[dict[str, Any]]:
        return []

    def datastore_info(self) -> dict[str, Any]:
        naa = "naa.6" + "0" * 31
        return {"name": "datastore1", "capacity": 2 << 30, "free": 1 << 30, "lun": {"size": 2 << 30, "naa": naa}}

    def file_stat(self, path: str) -> dict[str, Any]:
        folder, _, name = path.partition("/")
        if name not in self._vm(folder)["files"]:
            raise FabricError("not-found", path)
        return {"size": len(self.vms[folder]["files"][name]), "kind": "text"}

    def file_read(self, path: str) -> str:
        self.file_stat(path)
        folder, _, name = path.partition("/")
        return base64.b64encode(self.vms[folder]["files"][name].encode()).decode()

    def file_list(self, path: str) -> list[str]:
        return sorted(self._vm(path)["files"] if path else self.vms)


class HostDouble:
    """The ticket store of one host."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.tickets: list[dict[str, Any]] = []

    async def __call__(self, method: str, params: dict[str, Any]) -> Any:
        if method == "host.info":
            sha1, sha256 = ":".join(["AB"] * 20), ":".join(["CD"] * 32)
            return {"name": self.name, "address": self.address, "thumbprint_sha1": sha1, "thumbprint_sha256": sha256}
        if method in ("ticket.issue", "file.permit"):
            self.tickets.append(params)
            return None
        raise FabricError("unknown-method", method)


class Loop:
    """An event loop in a thread, for tests that speak to the gateway with blocking clients."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Any, timeout: float = 60) -> Any:
        """Runs a coroutine there and returns its result."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return future.result(timeout)

    def close(self) -> None:
        """Ends the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class Fabric:
    """A fabric folder with one storage and hosts that answer."""

    def __init__(self, folder: Path, loop: Loop, hosts: dict[str, str]) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.storage = StorageDouble()
        self.hosts = {name: HostDouble(name, address) for name, address in hosts.items()}
        self._loop = loop
        self._servers = [loop.run(serve(folder / "storage-datastore1.sock", self.storage))]
        self._servers += [loop.run(serve(folder / f"esxi-{n}.sock", h)) for n, h in self.hosts.items()]

    def close(self) -> None:
        """Stops answering."""
        for server in self._servers:
            self._loop.loop.call_soon_threadsafe(server.close)
