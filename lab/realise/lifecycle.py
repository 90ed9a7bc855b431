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
from lab.errors import FolderUnusable, LabFailed, LabGone, LabNotRunning, LabRunning, LabStuck, RemoteLabError
from lab.realise import vcsim
from lab.realise.control import call
from lab.realise.folders import LabFolder
from lab.realise.launch import Launch
from lab.realise.launcher import start_time
from lab.realise.mounts import CODE

UP_TIMEOUT = 120.0
DOWN_TIMEOUT = 40.0
START_TIMEOUT = 20.0
UNDO_TIMEOUT = 15.0

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
    read, write = os.pipe2(os.O_CLOEXEC)
    starting = _Starting()
    try:
        _launch(lab, launch, write)
        return starting.await_ready(read, time.monotonic() + timeout, progress)
    except _Silence:
        raise LabFailed(f"the lab {lab.name} ended while it came up; see {lab.supervisor_log}") from None
    except BaseException:
        starting.undo()
        raise
    finally:
        os.close(read)


class _Silence(Exception):
    """The launcher is gone without a word."""


def _launch(lab: LabFolder, launch: Launch, report: int) -> None:
    """Starts the launcher, which goes on by itself; closes `report`."""
    try:
        lab.path.mkdir(parents=True, exist_ok=True)
        log = lab.supervisor_log.open("ab")
    except OSError as exc:
        os.close(report)
        raise FolderUnusable(f"{exc.filename}: {exc.strerror}") from exc
    with log:
        try:
            subprocess.run(
                [sys.executable, "-m", "lab.realise.launcher", str(lab.path), str(report)],
                input=launch.to_json().encode(),
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, "PYTHONPATH": str(CODE)},
                pass_fds=[report],
                start_new_session=True,
                check=True,
                timeout=START_TIMEOUT,
            )
        except (subprocess.SubprocessError, OSError) as exc:
            raise LabFailed(f"the launcher does not start: {exc}; see {lab.supervisor_log}") from exc
        finally:
            os.close(report)


def _gone(lab: LabFolder, timeout: float) -> bool:
    end = time.monotonic() + timeout
    while lab.running():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


class _Starting:
    """A lab on its way up: what its launcher reports, and how to end exactly that launcher."""

    def __init__(self) -> None:
        self._launcher: dict[str, int] | None = None

    def await_ready(self, read: int, deadline: float, progress: Progress | None) -> dict[str, Any]:
        """Reads reports until the lab is ready; its status document."""
        buffer = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([read], [], [], left)[0]:
                raise LabFailed("the lab was not up in time")
            data = os.read(read, 1 << 16)
            if not data:
                raise _Silence
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                document: dict[str, Any] = json.loads(line)
                if "error" in document:
                    raise RemoteLabError(document["error"])
                if "launcher" in document:
                    self._launcher = document["launcher"]
                elif "ready" in document:
                    return dict(document["ready"])
                elif progress is not None:
                    progress(document)

    def undo(self) -> None:
        """Ends the launcher, gently first; its supervisor ends with it."""
        if self._launcher is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            _signal(self._launcher, number)
            end = time.monotonic() + UNDO_TIMEOUT
            while time.monotonic() < end:
                if not _alive(self._launcher):
                    return
                time.sleep(0.005)


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
        except LabGone:
            pass  # it ended while it answered; the wait below tells
        except LabNotRunning:
            # Still coming up, or already going down: the launcher passes the wish on.
            _kill(lab, "launcher", signal.SIGTERM)
        except VadplabError:
            pass  # it is silent: the wait below tells whether it ends
    if not _gone(lab, timeout):
        if force:
            _kill(lab, "launcher")
        raise LabStuck(f"the lab {lab.name} has not ended after {timeout:g} s; see {lab.supervisor_log}")


def _kill(lab: LabFolder, which: str, number: int = signal.SIGKILL) -> None:
    """Signals the launcher or the supervisor that the state file names."""
    known = lab.state().get(which)
    if isinstance(known, dict):
        _signal(known, number)


def _alive(process: dict[str, int]) -> bool:
    """Whether a process still is the one that was written down (pids are reused, start times are not)."""
    return start_time(process["pid"]) == process["start"]


def _signal(process: dict[str, int], number: int) -> None:
    if _alive(process):
        with suppress(ProcessLookupError):
            os.kill(process["pid"], number)
