# SPDX-License-Identifier: MIT
"""The life of a supervisor: own mounts, zygote, event loop, world, control socket, and the end of all of it.

`run` is what the process that the launcher forked into the new pid namespace does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from engine.errors import VadplabError
from firewall_rules.errors import RuleError
from lab.errors import LabFailed, exit_status, of_rules
from lab.realise import kernel, mounts, zygote
from lab.realise.control import ControlServer
from lab.realise.folders import LabFolder
from lab.realise.launch import Launch
from lab.realise.outside import Outside
from lab.realise.process import Processes
from lab.realise.supervisor import Supervisor
from lab.topology import Topology, load

# In the order in which they are needed; each is where the daemon's heavy imports are.
ZYGOTE_IMPORTS = (
    "asyncio",
    "fakes.storage",
    "fakes.esxi.command",
    "fakes.esxi.hostview",
    "fakes.vcenter.cli",
    "fakes.linux_guest.command",
    "engine.transport.__main__",
    "engine.service.__main__",
    "engine.console.__main__",
)


class Reporter:
    """The pipe to whoever waits for `vadplab up`: one JSON object a line, silent once it is closed."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def __call__(self, document: dict[str, Any]) -> None:
        """Reports; nobody may be listening any more."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, json.dumps(document, default=str).encode() + b"\n")

    def error(self, error: VadplabError) -> None:
        """Reports why the lab does not come up."""
        print(f"supervisor: {error}", file=sys.stderr)
        self({"error": {**error.to_dict(), "exit_code": exit_status(error)}})

    def close(self) -> None:
        """The lab is up: there is nothing more to say."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def run(lab: LabFolder, launch: Launch, report: int, outside: socket.socket, mode: str) -> int:
    """Runs the supervisor until the lab ends; returns its exit code. `report` and `outside` are owned from here on."""
    say = Reporter(report)
    try:
        topology = load(launch.topology)
        mounts.enter([lab.path, Path(launch.cwd)], topology.addresses())
        kernel.unshare(kernel.CLONE_NEWNET)
        kernel.name_process("vadplab-lab")
        _, sock = zygote.start(ZYGOTE_IMPORTS if launch.world else ())
        return asyncio.run(_live(lab, launch, topology, sock, Outside(outside), mode, say))
    except VadplabError as exc:
        say.error(exc)
    except RuleError as exc:
        say.error(of_rules(exc))
    except Exception as exc:
        traceback.print_exc()
        say.error(LabFailed(f"{type(exc).__name__}: {exc}; see {lab.supervisor_log}"))
    return 1


async def _live(
    lab: LabFolder,
    launch: Launch,
    topology: Topology,
    sock: socket.socket,
    outside: Outside,
    mode: str,
    say: Reporter,
) -> int:
    supervisor = Supervisor(lab, launch, topology, Processes(sock), outside, mode, say)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.ending.set)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())  # the launcher blocked them: pid 1 would have lost them
    ending: asyncio.Future[Any] = asyncio.ensure_future(supervisor.ending.wait())
    control: ControlServer | None = None
    try:
        await _start(supervisor, ending)
        control = ControlServer(lab.control_socket, supervisor.handle)
        lab.write_state(phase="up", **supervisor.facts)
        say({"ready": supervisor.status()})
        say.close()
        await asyncio.wait({ending, supervisor.processes.zygote_ended}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            print("supervisor: the zygote has ended; so does the lab", file=sys.stderr)
            return 1
        return 0
    finally:
        lab.control_socket.unlink(missing_ok=True)
        if control is not None:
            await control.close()
        await supervisor.close()


async def _start(supervisor: Supervisor, ending: asyncio.Future[Any]) -> None:
    """Brings the world up, unless the lab's end comes first."""
    from lab.realise.world import start_world  # after the fork: the zygote needs none of it

    starting = asyncio.ensure_future(start_world(supervisor))
    watched: set[asyncio.Future[Any]] = {starting, ending, supervisor.processes.zygote_ended}
    await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        raise LabFailed(f"the start was interrupted; see {supervisor.lab.supervisor_log}")
    await starting
