# SPDX-License-Identifier: MIT
"""In-process peers of a Backup Manager: they write down who was asked what, in order, and fail where a test says so."""

from __future__ import annotations

import asyncio
from typing import Any

from engine.errors import ConnectTimedOut, VadplabError
from engine.guest.channel import ScriptResult, Scripts
from engine.model.infrastructure import Job
from engine.modes.names import HOTADD, NETWORK, SAN
from engine.rpc.frames import WireClosed
from engine.scheduler import NoResource, Resource, Task, plan, replace
from engine.vsphere import Disk, GuestInfo, Snapshot, VmInfo, VSphereFault
from engine.vsphere.tracking import Extent, Tracking

PROXY_VM = "423f0000-0000-0000-0000-00000000000a"
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

    `hang` holds methods that never answer, `slow` seconds that others take; `gate` is called with each entry of the log.
    """

    def __init__(self, *, guest: bool = True, **job: Any) -> None:
        self.vms = [vm_info("db-vm", 2), vm_info("linux-vm", 1, on=True, address="10.0.0.9")]
        self.log: list[str] = []
        self.fail: dict[tuple[str, str], VadplabError] = {}
        self.times: dict[tuple[str, str], int] = {}
        self.hang: set[tuple[str, str]] = set()
        self.slow: dict[tuple[str, str], float] = {}
        self.reached: dict[tuple[str, str], asyncio.Event] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.left: dict[str, list[Snapshot]] = {}
        """Snapshots that were there before the run, by VM."""
        self.dead: set[str] = set()
        self.points: dict[str, dict[str, Any]] = {}
        self.begun: list[str] = []
        self.frozen: set[str] = set()
        self.progress: list[dict[str, Any]] = []
        self.pendings: list[dict[str, Any]] = []
        self.slots = {"proxy-1": 8, "repository-1": 8}
        self.modes: dict[str, list[str]] = {"proxy-1": ["nbdssl"]}
        self.facts: dict[str, dict[str, Any]] = {}
        """What Transport Services said at the last rescan."""
        self.broken_modes: dict[str, VadplabError] = {}
        self.dies: dict[tuple[str, str], str] = {}
        """(method, task) → proxy whose mover dies in that call."""
        self.tracking = Tracking(False, reason="not in this test")
        self.change_ids: dict[str, dict[int, str]] = {}
        self.areas: dict[tuple[str, int, str], list[Extent] | VSphereFault] = {}
        self.newest: dict[str, dict[str, Any]] = {}
        self.free = 1 << 40
        self.need = self.need_incremental = 1
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.attached: set[tuple[str, str]] = set()
        self.froze: dict[str, dict[int, str]] = {}
        """Paths of the files that a snapshot froze, by its reference and the device key, where they are not those of `vms`."""
        self.retained: list[tuple[str, dict[str, int]]] = []
        self.open_movers = 0
        self.reading = self.most_reading = 0
        self.known = {vm.name: [d.__class__(d.key, d.label, d.path, d.capacity) for d in vm.disks] for vm in self.vms}
        settings = {"name": "demo", "vms": ["db-vm", "linux-vm"], "guest": {"enabled": guest}}
        self.job = Job.model_validate(settings).model_dump(mode="json") | job
        self.service = FakeService(self)

    async def do(self, method: str, subject: str) -> None:
        """Writes down the call, then fails or hangs if it should."""
        self.log.append(f"{method} {subject}")
        key = (method, subject)
        self.reached.setdefault(key, asyncio.Event()).set()
        if key in self.hang:
            await asyncio.sleep(3600)
        if key in self.slow:
            await asyncio.sleep(self.slow[key])
        await asyncio.sleep(0)
        if key in self.fail and self.times.get(key, 1) > 0:
            if key in self.times:
                self.times[key] -= 1
            raise self.fail[key]

    def inputs(self) -> dict[str, Any]:
        server = {"port": 6162, "max_tasks": 8, "problem": None}
        return {
            "job": self.job,
            "vcenter": {
                "name": "vcenter", "address": "vcenter", "port": 443, "thumbprint": None, "username": "u", "password": "p",
            },
            "servers": [
                *(
                    {"name": n, "address": n, "roles": ["proxy"], "modes": m, "facts": self.facts.get(n, {}), **server}
                    for n, m in self.modes.items()
                ),
                {"name": "repository-1", "address": "repository-1", "roles": ["repository"], "modes": [], "facts": {}, **server},
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
        self.held: dict[str, int] = {}

    async def job(self) -> dict[str, Any]:
        await self.world.do("job", "demo")
        return self.world.inputs()

    def _proxies(self) -> list[Resource]:
        return [Resource(n, self.world.slots.get(n, 8), frozenset(m)) for n, m in self.world.modes.items()]

    async def acquire(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        await self.world.do("acquire", str(len(tasks)))
        wanted = [Task(t["id"], t["vm"], t["mode"], t["failover"]) for t in tasks]
        found = plan(wanted, self._proxies(), [Resource("repository-1", 8)], {})
        assert found is not None
        self.held = {**found.slots, **{n: c for n, c in self.world.slots.items() if n in found.slots}}
        assigned = [{"task": a.task, "proxy": a.proxy, "repository": a.repository} for a in found.assignments]
        return {"assignments": assigned, "slots": self.held}

    async def reassign(self, tasks: list[dict[str, Any]], lost: list[str]) -> dict[str, Any]:
        await self.world.do("reassign", tasks[0]["id"])
        wanted = [Task(t["id"], t["vm"], t["mode"], t["failover"]) for t in tasks]
        found = replace(wanted, self._proxies(), lost, {}, self.held)
        if found is None:
            raise NoResource("busy")
        self.held = {**self.held, **found.slots}
        return {
            "assignments": [{"task": t, "proxy": p} for t, p in found.proxies.items()],
            "slots": dict(found.slots),
        }

    async def release(self) -> None:
        await self.world.do("release", "demo")

    async def dead(self, sessions: list[str]) -> list[str]:
        return [session for session in sessions if session in self.world.dead]

    async def pending(self, pending: dict[str, Any]) -> None:
        self.world.pendings.append(pending)

    def progress(self, fields: dict[str, Any]) -> None:
        self.world.progress.append(fields)

    async def learned(self, fields: dict[str, Any]) -> None:
        pass


class FakeTransport:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.facts: dict[str, Any] = {"vm_uuid": PROXY_VM if HOTADD in world.modes.get(name, []) else None}

    async def newest_point(self, job: str, vm: str, capacity: int) -> dict[str, Any]:
        await self.world.do("newest", vm)
        found = {"point": None, "problem": None, **self.world.newest.get(vm, {})}
        sizes = {"need": self.world.need, "need_incremental": self.world.need_incremental, "free": self.world.free}
        return found | sizes

    async def retain(self, job: str, vm: str, policy: dict[str, int]) -> dict[str, Any]:
        await self.world.do("retain", vm)
        self.world.retained.append((vm, policy))
        return {"merges": [], "removals": ["old"]}

    async def start_mover(self, task: str, role: str) -> tuple[int, str]:
        await self.world.do("start", f"{role} {task}")
        return 2500, "token"

    async def stop_mover(self, task: str) -> None:
        pass

    async def begin_point(self, job: str, vm: str, point: str, *, parent: str | None, data: int, capacity: int) -> str:
        self.world.calls.append(("point.begin", vm, {"parent": parent, "data": data, "capacity": capacity}))
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


DATA_STEP = {SAN: "20a", HOTADD: "20b", **dict.fromkeys(NETWORK, "20c")}


class FakeMover:
    def __init__(self, world: World, server: str, task: str) -> None:
        self.world, self.server, self.task = world, server, task
        self.closed = asyncio.Event()
        self.mode = ""
        self.attached: str | None = None

    async def call(self, method: str, *, step: str, **params: Any) -> Any:
        heard = params.get("on_progress") or (lambda item: None)
        self.world.calls.append((method, self.task, params))
        if method == "source.read":
            self.world.reading += 1
            self.world.most_reading = max(self.world.most_reading, self.world.reading)
            heard({"step": "21", "phase": "begin", "text": ""})
        try:
            if self.closed.is_set():
                raise WireClosed(f"{self.server}: the connection was cut", step=step, target=self.server)
            if method == "source.open":
                return await self._open(params, heard)
            await self._do(method)
        except VadplabError as exc:
            if method == "source.read" and not self.closed.is_set():
                for one in (DATA_STEP[self.mode], "21"):
                    heard({"step": one, "phase": "failed", "text": exc.message})
            raise
        finally:
            if method == "source.read":
                self.world.reading -= 1
                self._detach()
        match method:
            case "data.listen":
                return {"port": 2501, "token": "data"}
            case "data.connect":
                self.world.log.append(f"-> {params['name']}")
            case "source.read":
                heard({"read": 5, "total": 10})
                for one in (DATA_STEP[self.mode], "21"):
                    heard({"step": one, "phase": "end", "text": ""})
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

    async def _open(self, params: dict[str, Any], heard: Any) -> dict[str, Any]:
        heard({"step": "18", "phase": "begin", "text": ""})
        try:
            heard({"step": "18", "phase": "end", "text": ""})
            heard({"step": "19", "phase": "begin", "text": ""})
            await self._do("source.open")
        except VadplabError as exc:
            if not self.closed.is_set():
                heard({"step": "19", "phase": "failed", "text": exc.message})
            raise
        heard({"step": "19", "phase": "end", "text": ""})
        failed: list[dict[str, str]] = []
        for mode in params["modes"]:
            self.mode = mode
            heard({"step": DATA_STEP[mode], "phase": "begin", "text": mode})
            if mode == HOTADD:
                self.world.attached.add((PROXY_VM, params["disk"]["path"]))
                self.attached = params["disk"]["path"]
            try:
                await self._do(f"open.{mode}")
            except VadplabError:
                assert self.closed.is_set()
                raise
            error = self.world.broken_modes.get(mode)
            if error is None:
                return {"vmx": "vmx", "capacity": params["disk"]["capacity"], "mode": mode, "failed_over": failed}
            heard({"step": DATA_STEP[mode], "phase": "failed", "text": error.message})
            self._detach()
            failed.append({"mode": mode, "code": error.code, "message": error.message})
            if not params["failover"] or mode == params["modes"][-1]:
                error.step = DATA_STEP[mode]
                raise error
        raise AssertionError

    async def _do(self, method: str) -> None:
        if self.world.dies.get((method, self.task)) == self.server:
            del self.world.dies[method, self.task]
            self.world.log.append(f"{method} {self.task}")
            self.world.log.append(f"died {self.server} {self.task}")
            self.attached = None  # a dead mover detaches nothing
            await self.close()
            raise WireClosed(f"{self.server}: the connection was cut", target=self.server)
        await self.world.do(method, self.task)

    def _detach(self) -> None:
        if self.attached is not None:
            self.world.attached.discard((PROXY_VM, self.attached))
            self.attached = None

    async def close(self) -> None:
        if not self.closed.is_set():
            self._detach()
            self.closed.set()
            self.world.open_movers -= 1


class FakeVSphere:
    def __init__(self, world: World) -> None:
        self.world = world

    async def vms(self, names: list[str], *, step: str) -> list[VmInfo]:
        await self.world.do("vms", "all")
        return [vm for vm in self.world.vms if vm.name in names]

    async def snapshots(self, vm: VmInfo, *, step: str) -> list[Snapshot]:
        return self.world.left.get(vm.name, [])

    async def create_snapshot(self, vm: VmInfo, name: str, description: str, *, timeout: float) -> Snapshot:
        self.world.snapshots[vm.name] = Snapshot(f"snapshot-{vm.name}", vm.moref, name, 1, description)
        await self.world.do("snapshot", vm.name)
        return self.world.snapshots[vm.name]

    async def ensure_tracking(self, vm: VmInfo) -> Tracking:
        await self.world.do("tracking", vm.name)
        return self.world.tracking

    async def change_ids(self, snapshot: Snapshot) -> dict[int, str]:
        await self.world.do("change_ids", snapshot.vm)
        return self.world.change_ids.get(snapshot.vm, {})

    async def changed_areas(self, snapshot: Snapshot, key: int, since: str, capacity: int) -> list[Extent]:
        await self.world.do("areas", f"{snapshot.vm}:{key} {since}")
        found = self.world.areas[snapshot.vm, key, since]
        if isinstance(found, VSphereFault):
            raise found
        return found

    async def left_attached(self, proxy_uuid: str) -> list[str]:
        await self.world.do("left", proxy_uuid)
        return sorted(path for uuid, path in self.world.attached if uuid == proxy_uuid)

    async def frozen_paths(self, snapshot: Snapshot, *, step: str) -> dict[int, str]:
        return self.world.froze.get(snapshot.moref, {})

    async def detach(self, proxy_uuid: str, paths: list[str], *, step: str) -> list[str]:
        await self.world.do("detach", proxy_uuid)
        found = [path for path in paths if (proxy_uuid, path) in self.world.attached]
        self.world.attached -= {(proxy_uuid, path) for path in found}
        return found

    async def settle(self) -> None:
        pass

    async def commit_snapshots(self, vm: str, mark: str, *, timeout: float) -> int:
        await self.world.do("commit", vm)
        if mine := [s for s in self.world.left.get(vm, []) if mark in s.description]:
            for one in mine:
                held = {path for _, path in self.world.attached} & set(self.world.froze.get(one.moref, {}).values())
                assert not held, "a disk is attached"
            self.world.left[vm] = [s for s in self.world.left[vm] if s not in mine]
            return len(mine)
        frozen = {one.path for shown in self.world.vms if shown.name == vm for one in shown.disks}
        assert not frozen & {path for _, path in self.world.attached}, "a disk is attached"
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
