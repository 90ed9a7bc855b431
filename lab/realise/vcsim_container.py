# SPDX-License-Identifier: MIT
"""vcsim in a Docker container without a network: the `vcenter` host *is* its network namespace.

The container is started outside the lab (by the caretaker, which also removes it when the lab is gone); its namespace is
taken as the host's, the host's link is plugged into it, and the gateway runs there, so that the rest of the lab can not
tell the difference. When the container dies, gateway, container and link are made anew, in that order: connections end
with the old gateway, while its link still carries their last packets.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

from engine.errors import VadplabError
from lab.realise import netns
from lab.realise.process import Process
from lab.realise.supervisor import Supervisor

LISTEN = ("127.0.0.1", 8989)
LOOK, CALM = 0.2, 10.0
PREFIX = "docker:"


def image_of(supervisor: Supervisor) -> str | None:
    """The image that this lab's vcsim comes from; None when it is a program."""
    spec = supervisor.launch.vcsim or ""
    return spec.removeprefix(PREFIX) if spec.startswith(PREFIX) else None


async def start(supervisor: Supervisor, host: str, image: str) -> None:
    """Starts the container and gives it the host's place: namespace, address, link.

    Raises:
        ControlFailed: no engine answers, or the container did not start.
    """
    vsphere = supervisor.topology.vsphere
    command = ["-l", f"{LISTEN[0]}:{LISTEN[1]}", "-tls=false", "-dc", "0", "-api-version", "8.0.3.0"]
    command += ["-username", vsphere.username.partition("@")[0], "-password", vsphere.password]
    await supervisor.start_container(host, image, command, ready="GOVC_URL=")
    link = next(link for link in supervisor.topology.links() if link.host == host)
    await asyncio.to_thread(netns.replug, link, supervisor.namespaces, supervisor.topology.router)


def keep(
    supervisor: Supervisor, host: str, image: str, gateway: Process, spawn: Callable[[], Awaitable[Process]]
) -> None:
    """Makes container, link and gateway anew whenever the container has died; until the lab goes down."""
    keeper = asyncio.create_task(_keep(supervisor, host, image, gateway, spawn))

    async def stop() -> None:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)

    supervisor.on_close(stop)


async def _keep(
    supervisor: Supervisor, host: str, image: str, gateway: Process, spawn: Callable[[], Awaitable[Process]]
) -> None:
    while True:
        await asyncio.sleep(LOOK)  # the engine tells nobody in here: its state is looked at
        try:
            found, _ = await supervisor.outside.call("container.state", lab=str(supervisor.lab.path), host=host)
        except VadplabError as exc:
            print(f"{host}: {exc}", file=sys.stderr, flush=True)
            await asyncio.sleep(CALM)
            continue
        if found["status"] != "running":
            print(f"{host}: the container is {found['status']}; making it anew", file=sys.stderr, flush=True)
            gateway = await _anew(supervisor, host, image, gateway, spawn)


async def _anew(
    supervisor: Supervisor, host: str, image: str, gateway: Process, spawn: Callable[[], Awaitable[Process]]
) -> Process:
    """Ends the old gateway and makes container, link and gateway, however often it takes."""
    if gateway.code is None:
        await gateway.terminate()
    if gateway in supervisor.processes.all:
        supervisor.processes.all.remove(gateway)
    pause = LOOK
    while True:
        try:
            await start(supervisor, host, image)
            return await spawn()
        except (VadplabError, OSError) as exc:
            print(f"{host}: {exc}", file=sys.stderr, flush=True)
            await asyncio.sleep(pause)
            pause = min(pause * 2, CALM)
