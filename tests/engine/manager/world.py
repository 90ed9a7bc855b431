# SPDX-License-Identifier: MIT
"""In-process peers of a Backup Manager: they write down who was asked what, in order, and fail where a test says so."""

from __future__ import annotations

import asyncio
from typing import Any

from engine.errors import ConnectTimedOut, VadplabError
from engine.guest.channel import ScriptResult, Scripts
from engine.model.infrastructure import Job
from engine.vsphere import Disk, GuestInfo, Snapshot, VmInfo

ROOT = "ab" * 32


def disk(vm: str, index: int) -> Disk:
    return Disk(2000 + index, f"Hard disk {index + 1}", f"[ds] {vm}/{vm}_{index}.vmdk", 1 << 20)


def vm_info(
    name: str, disks: int, *, on: bool = False, address: str | None = None, family: str = "linuxGuest"
) -> VmInfo:
    return VmInfo(
        moref=f"vm-{name}",
        name=name,
        uuid=f"uuid-{name}",
        vmx=f"[ds] {name}/{name}.vmx",
        powered_on=on,
        host="esxi-1",
        disks=tuple(disk(name, i) for i in range(disks)),
        guest=GuestInfo(on and address is not None, family, name, address),
    )


class World:
    """What exists, what was asked (`log`), and what fails: `fail[(method, subject)] = error`.

    `hang` holds methods that never answer; `gate` is called with each entry of the log.
    """

    def __init__(self, *, guest: bool = True, **job: Any) -> None:
        self.vms = [vm_info("db-vm", 2), vm_info("linux-vm", 1, on=True, address="10.0.0.9")]
        self.log: list[str] = []
        self.fail: dict[tuple[str, str], VadplabError] = {}
        self.times: dict[tuple[str, str], int] = {}
        self.hang: set[tuple[str, str]] = set()
        self.reached: dict[tuple[str, str], asyncio.Event] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.points: dict[str, dict[str, Any]] = {}
        self.begun: list[str] = []
        self.frozen: set[str] = set()
        self.progress: list[dict[str, Any]] = []
        self.pendings: list[dict[str, Any]] = []
        self.slots = {"proxy-1": 8, "repository-1": 8}
        self.open_movers = 0
        self.reading = self.most_reading = 0
        self.known = {vm.name: [d.__class__(d.key, d.label, d.path, d.capacity) for d in vm.disks] for vm in self.vms}
        settings = {"name": "demo", "vms": ["db-vm", "linux-vm"], "guest": {"enabled": guest}, **job}
        self.job = Job.model_validate(settings).model_dump(mode="json")
        self.service = FakeService(self)

    async def do(self, method: str, subject: str) -> None:
        """Writes down the call, then fails or hangs if it should."""
        self.log.append(f"{method} {subject}")
        key = (method, subject)
        self.reached.setdefault(key, asyncio.Event()).set()
        if key in self.hang:
            await asyncio.sleep(3600)
        await asyncio.sleep(0)
        if key in self.fail and self.times.get(key, 1) > 0:
            if key in self.times:
                self.times[key] -= 1
            raise self.fail[key]

    def inputs(self) -> dict[str, Any]:
        server = {"port": 6162, "max_tasks": 8, "modes": ["nbdssl"], "facts": {}, "problem": None}
        return {
            "job": self.job,
            "vcenter": {
                "name": "vcenter", "address": "vcenter", "port": 443, "thumbprint": None, "username": "u", "password": "p",
            },
            "servers": [
                {"name": "proxy-1", "address": "proxy-1", "roles": ["proxy"], **server},
                {"name": "repository-1", "address": "repository-1", "roles": ["repository"], **server},
            ],
            "vms": [
                {"name": n, "disks": [{"key": d.key, "label": d.label, "path": d.path, "capacity": d.capacity} for d in ds]}
                for n, ds in self.known.items()
            ],
            "guests": {"linux-vm": {"username": "root", "password": "p", "host_key": "k", "port": 22}},
        }  # fmt: skip

    async def transport(self, server: dict[str, Any], *, step: str) -> FakeTransport:
        await self.do("transport", server["name"])
        return FakeTransport(self, server["name"])

    async def mover(self, server: dict[str, Any], port: int, token: str, *, step: str, task: str) -> FakeMover:
        await self.do("mover", f"{server['name']} {task}")
        self.open_movers += 1
        return FakeMover(self, server["name"], task)

    async def vsphere(self, vcenter: dict[str, Any], *, step: str) -> FakeVSphere:
        await self.do("login", vcenter["name"])
        return FakeVSphere(self)

    def guest(self, vm: str, address: str, account: dict[str, Any], scripts: Scripts) -> FakeGuest:
        return FakeGuest(self, vm)


class FakeService:
    def __init__(self, world: World) -> None:
        self.world = world

    async def job(self) -> dict[str, Any]:
        await self.world.do("job", "demo")
        return self.world.inputs()

    async def acquire(self, tasks: list[dict[str, str]]) -> dict[str, Any]:
        await self.world.do("acquire", str(len(tasks)))
        found = [{"task": t["id"], "proxy": "proxy-1", "repository": "repository-1"} for t in tasks]
        return {"assignments": found, "slots": self.world.slots}

    async def release(self) -> None:
        await self.world.do("release", "demo")

    async def pending(self, pending: dict[str, Any]) -> None:
        self.world.pendings.append(pending)

    def progress(self, fields: dict[str, Any]) -> None:
        self.world.progress.append(fields)

    async def learned(self, fields: dict[str, Any]) -> None:
        pass


class FakeTransport:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name

    async def start_mover(self, task: str, role: str) -> tuple[int, str]:
        await self.world.do("start", f"{role} {task}")
        return 2500, "token"

    async def stop_mover(self, task: str) -> None:
        pass

    async def begin_point(self, job: str, vm: str, point: str) -> str:
        await self.world.do("point.begin", vm)
        self.world.begun.append(vm)
        return f"/repository/{vm}"

    async def commit_point(self, job: str, vm: str, point: str, manifest: dict[str, Any]) -> None:
        await self.world.do("point.commit", vm)
        self.world.begun.remove(vm)
        self.world.points[vm] = manifest

    async def abort_point(self, job: str, vm: str, point: str) -> None:
        await self.world.do("point.abort", vm)
        self.world.begun.remove(vm)

    async def close(self) -> None:
        await self.world.do("close", self.name)


class FakeMover:
    def __init__(self, world: World, server: str, task: str) -> None:
        self.world, self.server, self.task = world, server, task
        self.closed = asyncio.Event()

    async def call(self, method: str, *, step: str, **params: Any) -> Any:
        if method == "source.read":
            self.world.reading += 1
            self.world.most_reading = max(self.world.most_reading, self.world.reading)
        try:
            await self.world.do(method, self.task)
        finally:
            if method == "source.read":
                self.world.reading -= 1
        match method:
            case "data.listen":
                return {"port": 2501, "token": "data"}
            case "data.connect":
                self.world.log.append(f"-> {params['name']}")
            case "source.open":
                return {"vmx": "vmx", "capacity": params["disk"]["capacity"], "mode": params["mode"]}
            case "source.read":
                params["on_progress"]({"read": 5, "total": 10})
                return {"read": 10, "root": ROOT}
            case "target.commit":
                assert params["root"] == ROOT
                key = self.task.split(":")[1]
                return {
                    "file": f"disk-{key}.qcow2",
                    "size": 10,
                    "stored": 5,
                    "digests": f"disk-{key}.digests",
                    "root": ROOT,
                }
        return {}

    async def close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            self.world.open_movers -= 1


class FakeVSphere:
    def __init__(self, world: World) -> None:
        self.world = world

    async def vms(self, names: list[str], *, step: str) -> list[VmInfo]:
        await self.world.do("vms", "all")
        return [vm for vm in self.world.vms if vm.name in names]

    async def create_snapshot(self, vm: VmInfo, name: str, description: str, *, timeout: float) -> Snapshot:
        self.world.snapshots[vm.name] = Snapshot(f"snapshot-{vm.name}", vm.moref, name, 1, description)
        await self.world.do("snapshot", vm.name)
        return self.world.snapshots[vm.name]

    async def settle(self) -> None:
        pass

    async def commit_snapshots(self, vm: str, mark: str, *, timeout: float) -> int:
        await self.world.do("commit", vm)
        found = self.world.snapshots.pop(vm, None)
        assert found is None or mark in found.description
        return 0 if found is None else 1

    async def logout(self) -> None:
        await self.world.do("logout", "vcenter")


class FakeGuest:
    host_key: str | None = "k"

    def __init__(self, world: World, vm: str) -> None:
        self.world, self.vm = world, vm

    async def prepare(self) -> None:
        await self.world.do("ssh", self.vm)

    async def freeze(self) -> ScriptResult:
        self.world.frozen.add(self.vm)
        await self.world.do("freeze", self.vm)
        return ScriptResult("pre-freeze", 0, "", "", 0.1)

    async def thaw(self) -> ScriptResult:
        await self.world.do("thaw", self.vm)
        self.world.frozen.discard(self.vm)
        return ScriptResult("post-thaw", 0, "", "", 0.1)

    async def close(self) -> None:
        pass


def timed_out(step: str, target: str, port: int, host: str = "backup-server") -> ConnectTimedOut:
    return ConnectTimedOut(f"{host} to {target}:{port}: timed out", step=step, host=host, target=target, port=port)
