# SPDX-License-Identifier: MIT
"""The supervisor: pid 1 of the lab's pid namespace. It owns namespaces, links and processes, and answers the control socket.

When it ends, for whatever reason, the kernel ends every process of the lab and frees every namespace, link and mount.
`lab.realise.live` runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from engine.errors import InputError
from fakes.core import fabric
from fakes.vcenter.source import default_cache
from lab.errors import ControlFailed, HostUnknown, LabEmpty, ProcessFailed
from lab.realise import mounts
from lab.realise.control import Request
from lab.realise.firewall import Firewall
from lab.realise.folders import LabFolder
from lab.realise.launch import Launch
from lab.realise.netns import Namespaces
from lab.realise.outside import Outside
from lab.realise.process import READY_TIMEOUT, Process, Processes
from lab.topology import Topology

STOP_TIMEOUT = 8.0


class Controlled(Protocol):
    """What can be registered for a family of control methods, such as `firewall.…`."""

    async def control(self, method: str, params: dict[str, Any]) -> Any:
        """Answers a request; `method` is without the family's name."""
        ...


class Supervisor:
    """The running lab. `start_world` fills it; families of control methods are added with `register`."""

    def __init__(
        self,
        lab: LabFolder,
        launch: Launch,
        topology: Topology,
        processes: Processes,
        outside: Outside,
        mode: str,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self.lab = lab
        self.launch = launch
        self.topology = topology
        self.namespaces = Namespaces()
        self.processes = processes
        self.outside = outside
        self.mode = mode
        self.fabric = mounts.FABRIC
        self.started = time.time()
        self.ending = asyncio.Event()
        self.firewall: Firewall | None = None
        self.facts: dict[str, Any] = {}
        self._stage = 0
        self._families: dict[str, Controlled] = {}
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._report: Callable[[dict[str, Any]], None] = report

    def register(self, family: str, handler: Controlled) -> None:
        """Control methods `<family>.…` go to `handler` from now on."""
        self._families[family] = handler

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """`closer` (an async function without arguments) runs when the lab goes down, last registered first."""
        self._closers.append(closer)

    def report(self, text: str, **data: Any) -> None:
        """Says to whoever waits for `vadplab up` what has just been done.

        It also ends a stage: what was started in one stage is stopped together, and the last stage first.
        """
        self._stage += 1
        self._report({"done": text, **data})

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of the lab's daemons: nothing of the caller's but PATH and language."""
        path = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        for needed in ("/usr/sbin", "/sbin"):
            if needed not in path.split(":"):
                path += f":{needed}"
        return {
            "PATH": path,
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "HOME": str(self.lab.path),
            "PYTHONPATH": str(mounts.CODE),
            "PYTHONUNBUFFERED": "1",
            "VADPLAB_CACHE": str(default_cache()),
            **(extra or {}),
        }

    async def spawn(
        self,
        host: str | None,
        name: str,
        *,
        module: str | None = None,
        argv: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        fds: Sequence[int] = (),
        ready_timeout: float | None = READY_TIMEOUT,
        own_mounts: bool = False,
        own_pids: bool = False,
    ) -> Process:
        """Starts a daemon on a host (None: in no host's network, for what lives on the fabric only).

        Args:
            module: runs `module.main(argv)`; without it `argv` is a program and its arguments.
            env: added to `environment()`. fds: become 3, 4, … in the process; they stay the caller's.
            ready_timeout: seconds to wait for its first line on standard output; None: do not wait.
            own_mounts, own_pids: give it a mount namespace, or a pid and a mount namespace, of its own.

        Raises:
            ProcessFailed: it ended or said nothing in time; the message holds the end of its log. HostUnknown.
        """
        log = self.lab.log(host, name)
        log.parent.mkdir(parents=True, exist_ok=True)
        read, write = os.pipe2(os.O_CLOEXEC)
        errors = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            process = await self.processes.start(
                host,
                name,
                module=module,
                argv=argv,
                env=self.environment(env),
                cwd=str(cwd or self.lab.path),
                stdio=(nothing, write, errors),
                netns=self.netns(host),
                extra=fds,
                own_mounts=own_mounts,
                own_pids=own_pids,
                log=log,
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            for fd in (nothing, write, errors):
                os.close(fd)
        process.stage = self._stage
        self.processes.pump(process, read)
        if ready_timeout is not None:
            await self.processes.ready(process, ready_timeout)
        return process

    async def start_guardian(self) -> Path:
        """Starts the guests' guardian outside the lab's pid namespace; gives the socket where guests find it."""
        path = self.fabric / "guardian.sock"
        with fabric.listen(path) as listener:
            await self.outside.call("guardian", fds=[listener.fileno()])
        return path

    async def start_container(
        self, host: str, image: str, command: Sequence[str], ready: str | None = None
    ) -> dict[str, Any]:
        """Starts a container outside and takes its network namespace as that of `host`; gives `{id, pid}`.

        It counts as started when it runs and, with `ready`, has written that text.
        The host's link is not in it yet: `netns.plug`, or `netns.replug` when it had one. Root's labs only.

        Raises:
            ControlFailed: the engine does not answer, or the container did not start.
        """
        result, fds = await self.outside.call(
            "container.start", lab=str(self.lab.path), host=host, image=image, command=list(command), ready=ready
        )
        (fd,) = fds
        await asyncio.to_thread(self.namespaces.adopt, host, fd)
        found: dict[str, Any] = result
        return found

    def netns(self, host: str | None) -> int | None:
        """The descriptor of a host's network namespace; None for no host. Raises HostUnknown."""
        if host is None:
            return None
        if host not in self.namespaces:
            raise HostUnknown(f"no host {host}; the hosts are {', '.join(self.topology.hosts)}", host=host)
        return self.namespaces[host]

    async def handle(self, request: Request) -> Any:
        """Answers one control request."""
        family, _, method = request.method.partition(".")
        if family in self._families:
            return await self._families[family].control(method, request.params)
        match request.method:
            case "status":
                return self.status()
            case "exec":
                return await self._exec(request)
            case "spawn":
                return await self._spawn(request.params)
            case "kill":
                return self._kill(request.params)
            case "logs":
                return self._logs(request.params)
            case "down":
                self.ending.set()
                return {"name": self.lab.name}
        if family == "run" and not self.launch.world:
            raise LabEmpty("this lab has hosts, links and a firewall only: no run can be recorded in it")
        raise ControlFailed(f"the supervisor has no method {request.method}")

    def status(self) -> dict[str, Any]:
        """The lab as a document: hosts with role, zone, address and processes."""
        by_host: dict[str | None, list[dict[str, Any]]] = {}
        for process in self.processes.all:
            entry = {
                "name": process.name,
                "pid": process.pid,
                "state": "running" if process.code is None else "ended",
                "code": process.code,
                "ready": process.ready_line,
            }
            by_host.setdefault(process.host, []).append(entry)
        hosts = [
            {
                "name": name,
                "role": host.role.value,
                "zone": host.zone,
                "address": str(host.address) if host.address else None,
                "processes": by_host.get(name, []),
            }
            for name, host in self.topology.hosts.items()
        ]
        return {
            "name": self.lab.name,
            "state": "down" if self.ending.is_set() else "up",
            "mode": self.mode,
            "topology": self.topology.name,
            "started": self.started,
            **self.facts,
            "hosts": hosts,
            "fabric": by_host.get(None, []),
        }

    async def _exec(self, request: Request) -> dict[str, Any]:
        """Runs a program (or `module`) on a host with the client's own standard streams; gives its exit code."""
        params = request.params
        if len(request.fds) != 3:
            raise ControlFailed("exec needs standard input, output and error")
        host, argv = params.get("host"), params.get("argv")
        module = params.get("module")
        if not isinstance(argv, list) or not (argv or module):
            raise InputError("no command was given")
        cwd = str(params.get("cwd") or self.lab.path)
        stdin, stdout, stderr = request.fds
        process = await self.processes.start(
            host,
            str(params.get("name") or module or Path(str(argv[0])).name),
            module=module,
            argv=[str(part) for part in argv],
            env={**self.environment(), **(params.get("env") or {}), "PATH": self.environment()["PATH"]},
            cwd=cwd if Path(cwd).is_dir() else "/",
            stdio=(stdin, stdout, stderr),
            netns=self.netns(host),
            tty=bool(params.get("tty")),
        )
        request.close_fds()
        passing = asyncio.create_task(_pass_signals(request, process))
        try:
            return {"code": await process.wait()}
        except asyncio.CancelledError:
            process.kill_group(signal.SIGHUP)
            with contextlib.suppress(TimeoutError):
                await process.wait(1.0)
            process.kill_group(signal.SIGKILL)
            raise
        finally:
            passing.cancel()
            self.processes.all.remove(process)

    async def _spawn(self, params: dict[str, Any]) -> dict[str, Any]:
        process = await self.spawn(
            params.get("host"),
            str(params["name"]),
            module=params.get("module"),
            argv=params.get("argv") or (),
            env=params.get("env"),
            ready_timeout=params.get("ready_timeout", READY_TIMEOUT),
        )
        return {"pid": process.pid, "ready": process.ready_line}

    def _kill(self, params: dict[str, Any]) -> dict[str, Any]:
        host, name = params.get("host"), params.get("name")
        found = [p for p in self.processes.all if p.host == host and p.name == name and p.code is None]
        if not found:
            raise ProcessFailed(f"{host or 'fabric'} runs no process {name}", host=host)
        for process in found:
            process.send_signal(int(params.get("signal", signal.SIGTERM)))
        return {"pids": [process.pid for process in found]}

    def _logs(self, params: dict[str, Any]) -> dict[str, Any]:
        host = str(params["host"])
        if host != "fabric":
            self.netns(host)
        return {"files": [str(path) for path in sorted((self.lab.host(host) / "log").glob("*.log"))]}

    async def close(self) -> None:
        """Takes the world down in order: closers, the processes of each stage, last stage first, then the namespaces."""
        self.ending.set()
        for closer in reversed(self._closers):
            try:
                async with asyncio.timeout(STOP_TIMEOUT):
                    await closer()
            except Exception:
                traceback.print_exc()
        for stage in range(self._stage, -1, -1):  # a guest must still find its disk while it ends
            running = [process for process in self.processes.all if process.code is None and process.stage == stage]
            await asyncio.gather(*(process.terminate(STOP_TIMEOUT) for process in running), return_exceptions=True)
        self.namespaces.close()


async def _pass_signals(request: Request, process: Process) -> None:
    while True:
        process.kill_group(await request.signals.get())
