# SPDX-License-Identifier: MIT
"""Running a command on a host of the lab with this terminal's own streams: for `exec`, `shell` and the console's commands."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import termios
import tty
from pathlib import Path
from typing import Any

from lab.cli.signals import TERMINAL, forwarded
from lab.realise.control import ControlClient
from lab.realise.folders import LabFolder

_DROPPED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


def run(lab: LabFolder, host: str, argv: list[str], *, module: str | None = None, interactive: bool = False) -> int:
    """Runs a program (or `module.main(argv)` of ours) on a host and returns its exit code.

    Signals that this process gets are passed on; when it ends, the command ends. With `interactive` the command gets a
    terminal of its own, sized and relayed like this one.

    Raises:
        LabNotRunning, RemoteLabError (unknown host), ControlFailed.
    """
    params: dict[str, Any] = {"host": host, "argv": argv, "module": module, "cwd": str(Path.cwd())}
    params["env"] = {key: value for key, value in os.environ.items() if key not in _DROPPED} if module is None else {}
    with ControlClient(lab.control_socket) as client:
        if interactive:
            return _on_terminal(client, params)
        with forwarded(client.signal, TERMINAL):
            return int(client.call("exec", timeout=None, fds=[0, 1, 2], **params)["code"])


def _on_terminal(client: ControlClient, params: dict[str, Any]) -> int:
    """Gives the command the slave of a new terminal pair and relays between the master and this terminal."""
    master, slave = os.openpty()

    def resize(*_: object) -> None:
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(master, termios.TIOCSWINSZ, size)

    resize()
    client.send("exec", fds=[slave, slave, slave], tty=True, **params)
    os.close(slave)
    saved = termios.tcgetattr(0)
    before = signal.signal(signal.SIGWINCH, resize)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # what was typed already is for the shell
        _relay(client, master)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)
        signal.signal(signal.SIGWINCH, before)
        os.close(master)
    return int(client.result(timeout=10.0)["code"])


def _relay(client: ControlClient, master: int) -> None:
    watched: list[Any] = [0, master, client]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if master in ready:
            try:
                data = os.read(master, 1 << 16)
            except OSError:  # the command has closed its terminal
                return
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif client in ready:
            return
        elif 0 in ready:
            data = os.read(0, 1 << 16)
            if data:
                os.write(master, data)
            else:
                watched.remove(0)
