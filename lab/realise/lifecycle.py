# SPDX-License-Identifier: MIT
"""Bringing a lab up and taking it down, from outside: what `vadplab up` and `vadplab down` do, and tests too."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from engine.errors import VadplabError
from lab.errors import LabFailed, LabNotRunning, LabRunning, LabStuck, RemoteLabError
from lab.realise import vcsim
from lab.realise.control import call
from lab.realise.folders import LabFolder
from lab.realise.launch import Launch
from lab.realise.launcher import start_time
from lab.realise.mounts import CODE

UP_TIMEOUT = 120.0
DOWN_TIMEOUT = 40.0

Progress = Callable[[dict[str, Any]], None]


def up(
    lab: LabFolder, launch: Launch, *, timeout: float = UP_TIMEOUT, progress: Progress | None = None
) -> dict[str, Any]:
    """Starts a lab and returns its status document once every part of it answers; the lab then runs by itself.

    Args:
        progress: called with `{"done": what, …}` for each part that is up.

    Raises:
        LabRunning: it is up already. LabFailed or what stood in the way: everything is undone then.
    """
    if lab.running():
        raise LabRunning(f"the lab {lab.name} is up already")
    if launch.world:
        spec, described = vcsim.resolve(launch.vcsim)
        launch = replace(launch, vcsim=spec)
        if progress is not None:
            progress({"done": described})
    lab.path.mkdir(parents=True, exist_ok=True)
    read, write = os.pipe2(os.O_CLOEXEC)
    environment = {**os.environ, "PYTHONPATH": str(CODE)}
    with lab.supervisor_log.open("ab") as log:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "lab.realise.launcher", str(lab.path), str(write)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment,
            pass_fds=[write],
            start_new_session=True,
        )
    os.close(write)
    try:
        assert launcher.stdin is not None
        with suppress(BrokenPipeError):
            launcher.stdin.write(launch.to_json().encode())
            launcher.stdin.close()
        status = _await_ready(read, time.monotonic() + timeout, progress)
    except BaseException as exc:
        _end(launcher)
        if isinstance(exc, LabFailed) and not exc.message:
            raise LabFailed(f"the lab {lab.name} ended while it came up; see {lab.supervisor_log}") from None
        raise
    finally:
        os.close(read)
    launcher.returncode = 0  # it goes on by itself: nobody here waits for it
    return status


def _await_ready(read: int, deadline: float, progress: Progress | None) -> dict[str, Any]:
    buffer = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([read], [], [], left)[0]:
            raise LabFailed("the lab was not up in time")
        data = os.read(read, 1 << 16)
        if not data:
            raise LabFailed("")
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            document = json.loads(line)
            if "error" in document:
                raise RemoteLabError(document["error"])
            if "ready" in document:
                ready: dict[str, Any] = document["ready"]
                return ready
            if progress is not None:
                progress(document)


def _end(launcher: subprocess.Popen[bytes]) -> None:
    """Ends a launcher whose lab did not come up, gently first, and waits for it."""
    launcher.terminate()
    try:
        launcher.wait(15)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait(15)


def down(lab: LabFolder, *, force: bool = False, timeout: float = DOWN_TIMEOUT) -> None:
    """Takes a lab down and returns when nothing of it is left but its folder.

    Args:
        force: SIGKILL the supervisor instead of asking it.

    Raises:
        LabNotRunning: it is not up. LabStuck: it did not end in time.
    """
    if not lab.running():
        raise LabNotRunning(f"the lab {lab.name} is not running")
    if force:
        _kill(lab, "supervisor")
    else:
        try:
            call(lab.control_socket, "down", timeout=10.0)
        except LabNotRunning:
            # Still coming up, or already going down: the launcher passes the wish on.
            _kill(lab, "launcher", signal.SIGTERM)
        except VadplabError:
            pass  # it ended while it answered; the wait below tells
    end = time.monotonic() + timeout
    while lab.running():
        if time.monotonic() > end:
            if force:
                _kill(lab, "launcher")
            raise LabStuck(f"the lab {lab.name} has not ended after {timeout:g} s; see {lab.supervisor_log}")
        time.sleep(0.005)


def _kill(lab: LabFolder, which: str, number: int = signal.SIGKILL) -> None:
    """Signals launcher or supervisor, if the state file's process is still the same."""
    known = lab.state().get(which) or {}
    pid = known.get("pid")
    if isinstance(pid, int) and start_time(pid) == known.get("start"):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
