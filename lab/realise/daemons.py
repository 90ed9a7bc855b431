# SPDX-License-Identifier: MIT
"""The daemons of the world, in the order in which they need each other: storage, ESXi hosts, vCenter, guests, engine.

Each is started by the same entry that a person uses (`vadplab fake …`, `python -m engine.…`) and is ready when its first
line says so. Fakes get the fabric folder; engine processes get their configuration file and nothing else.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import VadplabError
from engine.events import new_id
from fakes.core import fabric
from lab.observe.recorder import Recorder
from lab.observe.runs import run_name
from lab.realise import deploy, vcsim_container
from lab.realise.process import Process
from lab.realise.supervisor import Supervisor
from lab.topology.model import Role

ENGINE_READY = 30.0
FAKES_READY = 60.0
RESCAN = 120.0
RESTART_PAUSE, RESTART_CALM = 0.2, 10.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process of the world: on which host (None: on the fabric only), its name, its module and arguments."""

    host: str | None
    name: str
    module: str
    argv: tuple[str, ...]
    own_pids: bool = False


async def start(supervisor: Supervisor) -> None:
    """Starts every daemon of the topology; raises ProcessFailed with the log of the one that failed."""
    deploy.write(supervisor.topology, supervisor.lab)
    image = vcsim_container.image_of(supervisor)
    stages: tuple[tuple[str, Callable[[Supervisor], list[Daemon] | Awaitable[list[Daemon]]], float], ...] = (
        ("storage", storage, FAKES_READY),
        ("san", san, FAKES_READY),
        ("buses", buses, FAKES_READY),
        ("esxi", esxi, FAKES_READY),
        ("vcenter", vcenter, FAKES_READY),
        ("guests", guests, FAKES_READY),
        ("config-db", config_db, FAKES_READY),
        ("engine", engine, ENGINE_READY),
    )
    for title, plan, timeout in stages:
        planned = plan(supervisor)
        daemons = planned if isinstance(planned, list) else await planned
        begun = time.monotonic()
        if title == "vcenter" and image is not None:
            for daemon in daemons:
                await vcsim_container.start(supervisor, str(daemon.host), image)
        started = await _all(*(_spawn(supervisor, daemon, timeout) for daemon in daemons))
        if title == "vcenter" and image is not None:
            for daemon, process in zip(daemons, started, strict=True):
                again = functools.partial(_spawn, supervisor, daemon, FAKES_READY)
                vcsim_container.keep(supervisor, str(daemon.host), image, process, again)
        if title == "engine":
            keep_alive(supervisor, dict(zip(daemons, started, strict=True)))
        if daemons:
            supervisor.report(title, count=len(daemons), ms=_ms(begun))


async def first_rescan(supervisor: Supervisor, recorder: Recorder) -> None:
    """Fills the configuration database, as an administrator does after adding infrastructure: a run of its own, recorded.

    A rescan that fails does not undo the lab (a policy may forbid it); it is reported, and jobs will say what is missing.
    """
    plan, lab = supervisor.topology, supervisor.lab
    for console in plan.by_role(Role.CONSOLE):
        begun = time.monotonic()
        session = new_id()
        run = run_name("rescan", session)
        await recorder.begin(run, "rescan", session=session)
        try:
            process = await supervisor.spawn(
                console,
                "console",
                module="engine.console",
                argv=(
                    "--config",
                    str(lab.host(console) / "etc" / "engine.yaml"),
                    "--json",
                    "infra",
                    "rescan",
                    "--session",
                    session,
                ),
                ready_timeout=None,
            )
            code = await process.wait(RESCAN)
        finally:
            await recorder.end(run, session)
        supervisor.processes.all.remove(process)
        problem = {"problem": failed_at(process, code)} if code else {}
        supervisor.report("infrastructure", run=run, **problem, ms=_ms(begun))


def failed_at(process: Process, code: int) -> str:
    """What a console that printed its result document into its log has failed at: every error, by its own words."""
    lines = process.log.read_text(errors="replace").splitlines() if process.log else []
    try:
        document = json.loads(lines[-1])
        errors = document.get("errors") or [document["error"]]
        return "; ".join(f"{error['message']} ({error['code']})" for error in errors)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return f"the console ended with {code}; its log says why (`vadplab logs`)"


def _ms(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)


def storage(supervisor: Supervisor) -> list[Daemon]:
    """One service per datastore."""
    lab = supervisor.lab
    return [
        Daemon(
            None,
            f"storage-{store.name}",
            "fakes.storage",
            (
                *("--name", store.name, "--capacity", str(store.capacity)),
                *("--state", str(lab.fakes / f"storage-{store.name}"), "--fabric", str(supervisor.fabric)),
            ),
        )
        for store in supervisor.topology.vsphere.datastores
    ]


async def san(supervisor: Supervisor) -> list[Daemon]:
    """The storage array, if the topology has one: the LUN of every datastore over iSCSI."""
    lab, plan = supervisor.lab, supervisor.topology
    array = plan.array
    if array is None:
        return []
    luns: list[str] = []
    for store in plan.vsphere.datastores:
        info = await fabric.call(supervisor.fabric / f"storage-{store.name}.sock", "datastore.info")
        luns += ["--lun", info["lun"]["path"], "--naa", info["lun"]["naa"], "--name", store.name]
    allowed = [part for name in array.initiators for part in ("--initiator", plan.ip(name))]
    argv = (
        *("--listen", plan.ip(array.host), *luns, *allowed),
        *("--chap", array.username, "--chap-password-file", str(deploy.chap_file(lab, array.host))),
        *("--state", str(_evidence(supervisor.fabric.parent / array.host)), "--fabric", str(supervisor.fabric)),
    )
    return [Daemon(array.host, "san", "fakes.san", argv)]


def buses(supervisor: Supervisor) -> list[Daemon]:
    """The virtual SCSI bus of every proxy that is a VM."""
    found = []
    for name in supervisor.topology.by_role(Role.PROXY):
        vm = supervisor.topology.vm_of_guest(name)
        if vm is not None:
            places = ("--fabric", str(supervisor.fabric), "--devices", str(deploy.devices(name)))
            argv = ("--vm", vm.name, *places, "--even-without-fuse")
            found.append(Daemon(None, f"bus-{name}", "fakes.scsi_bus", argv))
    return found


def esxi(supervisor: Supervisor) -> list[Daemon]:
    """Every ESXi host: 443 and 902."""
    lab, plan = supervisor.lab, supervisor.topology
    return [
        Daemon(
            name,
            "esxi",
            "fakes.esxi",
            (
                *("--name", name, "--listen", plan.ip(name), "--certificate", str(lab.pki / f"{name}.pem")),
                *("--fabric", str(supervisor.fabric), "--inventory", str(lab.inventory_file)),
                *("--journal", str(_evidence(lab.fakes / name) / "journal.jsonl"), *_vcsim(supervisor)),
            ),
        )
        for name in plan.by_role(Role.ESXI)
    ]


def vcenter(supervisor: Supervisor) -> list[Daemon]:
    """The gateway, which starts vcsim."""
    lab, plan = supervisor.lab, supervisor.topology
    found = []
    for name in plan.by_role(Role.VCENTER):
        state = _evidence(lab.fakes / name)
        argv = (
            *("--listen", f"{plan.ip(name)}:443", "--certificate", str(lab.pki / f"{name}.pem")),
            *("--inventory", str(lab.inventory_file), "--fabric", str(supervisor.fabric)),
            *(
                "--state",
                str(supervisor.fabric.parent / name),
                "--journal",
                str(state / "journal.jsonl"),
                *_vcsim(supervisor, attached=True),
            ),
        )
        found.append(Daemon(name, "vcenter", "fakes.vcenter", argv))
    return found


async def guests(supervisor: Supervisor) -> list[Daemon]:
    """Every Linux guest that is the inside of a powered-on VM, and the guardian outside that thaws it if all else dies."""
    lab, plan = supervisor.lab, supervisor.topology
    found: list[Daemon] = []
    guardian: Path | None = None
    accounts = {account.host: account for account in plan.backup.credentials}
    for name in plan.by_role(Role.GUEST_LINUX):
        vm = plan.vm_of_guest(name)
        account = accounts.get(name)
        if vm is None or account is None:
            continue
        guardian = guardian or await supervisor.start_guardian()
        state = _evidence(lab.fakes / f"guest-{vm.name}")
        disk = f"nbd+unix:///live/{vm.name}/2000?socket={supervisor.fabric / f'nbd-{vm.datastore}.sock'}"
        password = state / "password"
        password.touch(mode=0o600)
        password.write_text(account.password)
        argv = (
            *("--vm", vm.name, "--disk", disk, "--address", plan.ip(name), "--state", str(state)),
            *("--fabric", str(supervisor.fabric), "--user", account.username, "--password-file", str(password)),
            *("--host-key", str(deploy.host_key(lab, name)), "--hostname", name, "--guardian", str(guardian)),
        )
        found.append(Daemon(name, "guest", "fakes.linux_guest", argv))
    return found


def config_db(supervisor: Supervisor) -> list[Daemon]:
    """PostgreSQL on the topology's config_db host, if it has one; only the backup server may log in."""
    lab, plan = supervisor.lab, supervisor.topology
    client = next(iter(plan.by_role(Role.BACKUP_SERVER)))
    return [
        Daemon(
            name,
            "postgres",
            "lab.realise.postgres",
            (
                *("--state", str(lab.host(name) / "var"), "--sockets", str(supervisor.fabric.parent / name)),
                *("--listen", plan.ip(name), "--port", str(deploy.POSTGRES_PORT)),
                *("--certificate", str(lab.pki / f"{name}.pem"), "--allow", f"{plan.ip(client)}/32"),
                *("--password-file", str(deploy.database_password(lab, name))),
            ),
        )
        for name in plan.by_role(Role.CONFIG_DB)
    ]


def engine(supervisor: Supervisor) -> list[Daemon]:
    """Transport Services and the Backup Service."""
    lab, plan = supervisor.lab, supervisor.topology
    found = []
    for name in deploy.engine_hosts(plan):
        config = str(lab.host(name) / "etc" / "engine.yaml")
        role = plan.host(name).role
        if role is Role.BACKUP_SERVER:
            found.append(Daemon(name, "backup-service", "engine.service", ("--config", config)))
        elif role is not Role.CONSOLE:
            found.append(Daemon(name, "transport", "engine.transport", ("--config", config)))
    return found


def keep_alive(supervisor: Supervisor, running: dict[Daemon, Process]) -> None:
    """Starts a service of the engine again when it dies, as the init system of a real machine does."""
    keepers = [asyncio.create_task(_keep(supervisor, daemon, process)) for daemon, process in running.items()]

    async def stop() -> None:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)

    supervisor.on_close(stop)


async def _keep(supervisor: Supervisor, daemon: Daemon, process: Process) -> None:
    pause = RESTART_PAUSE
    while True:
        code = await process.wait()
        lived = time.monotonic() - process.started
        pause = RESTART_PAUSE if lived > RESTART_CALM else min(pause * 2, RESTART_CALM)
        print(f"{daemon.host}: {daemon.name} ended ({code}); starting it again", file=sys.stderr, flush=True)
        supervisor.processes.all.remove(process)
        while True:
            await asyncio.sleep(pause)  # the init system's pause between two starts, not a wait for something
            try:
                process = await _spawn(supervisor, daemon, ENGINE_READY)
                break
            except VadplabError as exc:
                pause = min(pause * 2, RESTART_CALM)
                print(f"{daemon.host}: {daemon.name}: {exc}", file=sys.stderr, flush=True)


async def _spawn(supervisor: Supervisor, daemon: Daemon, timeout: float) -> Process:
    return await supervisor.spawn(
        daemon.host,
        daemon.name,
        module=daemon.module,
        argv=daemon.argv,
        ready_timeout=timeout,
        own_pids=daemon.own_pids,
    )


async def _all(*work: Awaitable[Process]) -> list[Process]:
    """All at once; the first error is raised after all have ended, so that nothing goes on behind it."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


def _vcsim(supervisor: Supervisor, *, attached: bool = False) -> tuple[str, ...]:
    if attached and vcsim_container.image_of(supervisor) is not None:
        return ("--attach", ":".join(map(str, vcsim_container.LISTEN)))
    return ("--vcsim", supervisor.launch.vcsim) if supervisor.launch.vcsim else ()


def _evidence(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
