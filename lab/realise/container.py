# SPDX-License-Identifier: MIT
"""Containers of a lab, run by the caretaker: only it can see their pids, and it removes them when the lab is gone.

A container has no network of Docker's (`--network none`): the lab takes its network namespace, by descriptor, as that of
one of its hosts and plugs the host's own link into it. Its name is known before it is made, so that one that a killed
caretaker left is found and removed by the next `up`.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from lab.realise.outside import Answer, Caretaker

LABEL = "vadplab.lab"
TIMEOUT = 60
STARTED = 30.0


class ContainerFailed(Exception):
    """The container did not start; the text holds what it or the engine said."""


def name_of(lab: str, host: str) -> str:
    """The container's name: one per host of a lab, labs being told apart by their folder."""
    import hashlib

    return f"vadplab-{hashlib.sha256(lab.encode()).hexdigest()[:8]}-{host}"


def start(caretaker: Caretaker, params: dict[str, Any], fds: list[int]) -> Answer:
    """Starts `{lab, host, image, command, environment?, ready?}`; gives `{id, pid}` and its network namespace.

    `ready` is text that its output holds once it answers.
    A container of the same lab and host is removed first, also a living one.
    """
    client = _client()
    try:
        name = name_of(params["lab"], params["host"])
        _remove(client, name)
        caretaker.cleanups.append(lambda: remove_by_name(name))  # before it exists
        container = client.containers.create(
            params["image"],
            params["command"],
            name=name,
            labels={LABEL: params["lab"]},
            network_mode="none",
            environment=params.get("environment") or {},
        )
        container.start()
        pid, netns = _running(container, params.get("ready"))
        return {"id": container.id, "pid": pid}, [netns]
    finally:
        client.close()


def _running(container: Any, ready: str | None) -> tuple[int, int]:
    """Waits until it runs and, with `ready`, has said that text; its pid and a descriptor of its network namespace."""
    end = time.monotonic() + STARTED
    while True:
        container.reload()
        said = container.logs().decode(errors="replace").strip()
        pid = int(container.attrs["State"]["Pid"])
        if pid and container.status == "running" and (ready is None or ready in said):
            with contextlib.suppress(FileNotFoundError):  # it ended this instant: the next look tells
                return pid, os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if container.status in ("exited", "dead") or time.monotonic() > end:
            first = said.splitlines()[0] if said else "it said nothing"
            raise ContainerFailed(f"{container.name} is {container.status}: {first}")
        time.sleep(0.01)


def remove(caretaker: Caretaker, params: dict[str, Any], fds: list[int]) -> Answer:
    """Removes the container of `{lab, host}`, if there is one."""
    remove_by_name(name_of(params["lab"], params["host"]))
    return None, ()


def state(caretaker: Caretaker, params: dict[str, Any], fds: list[int]) -> Answer:
    """`{status, pid}` of the container of `{lab, host}`; status is `absent` when there is none."""
    import docker.errors

    client = _client()
    try:
        container = client.containers.get(name_of(params["lab"], params["host"]))
        return {"status": container.status, "pid": int(container.attrs["State"]["Pid"])}, ()
    except docker.errors.NotFound:
        return {"status": "absent", "pid": 0}, ()
    finally:
        client.close()


def remove_by_name(name: str) -> None:
    """Removes a container of ours, running or not."""
    client = _client()
    try:
        _remove(client, name)
    finally:
        client.close()


def _client() -> Any:
    import docker

    return docker.from_env(timeout=TIMEOUT)


def _remove(client: Any, name: str) -> None:
    import docker.errors

    try:
        container = client.containers.get(name)
        if LABEL not in container.labels:
            raise ContainerFailed(f"a container that is not ours has the name {name}")
        container.remove(force=True, v=True)
    except docker.errors.NotFound:
        return
