# SPDX-License-Identifier: MIT
"""Runs the engine's console on the lab's `console` host and reads what it streams: one JSON object a line.

The console speaks 9392 to the Backup Service from there; this side only passes its words on. Signals that this process
gets go to the console, so that Ctrl-C stops a job the way it would on a real console.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import Any

import typer

from engine.errors import VadplabError
from lab.cli.output import Out
from lab.cli.signals import forwarded
from lab.errors import ConsoleFailed, RemoteLabError
from lab.realise.control import ControlClient
from lab.realise.folders import LabFolder
from lab.topology import load
from lab.topology.model import Role

MODULE = "engine.console"
Line = Callable[[dict[str, Any]], None]


def host_of(lab: LabFolder) -> str:
    """The lab's console host.

    Raises:
        ConsoleFailed: the topology has none.
    """
    for name in load(lab.topology_file).by_role(Role.CONSOLE):
        return name
    raise ConsoleFailed("the topology has no host with the role console")


def run(lab: LabFolder, argv: list[str], on_line: Line | None = None) -> tuple[int, dict[str, Any]]:
    """Runs one console command; gives its exit code and its last document (`{}` when it printed none).

    Args:
        on_line: called with every earlier document, as it comes (progress, steps).

    Raises:
        LabNotRunning, RemoteLabError, ConsoleFailed (it printed something that is no JSON object).
    """
    host = host_of(lab)
    config = lab.host(host) / "etc" / "engine.yaml"
    log = lab.log(host, "console")
    log.parent.mkdir(parents=True, exist_ok=True)
    read, write = os.pipe2(os.O_CLOEXEC)
    errors = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    documents = _Documents(read, on_line)
    with ControlClient(lab.control_socket) as client, forwarded(client.signal):
        try:
            client.send(
                "exec",
                fds=[nothing, write, errors],
                host=host,
                module=MODULE,
                name="console",
                argv=["--config", str(config), "--events", *argv],
                cwd=str(lab.path),
            )
        finally:
            for fd in (nothing, write, errors):
                os.close(fd)
        documents.start()
        code = int(client.result(timeout=None)["code"])
    return code, documents.last()


def finish(out: Out, code: int, document: dict[str, Any], schema: str) -> None:
    """Prints the document of a console command; leaves with its exit code, and its error for people, when it failed."""
    error = document.get("error") if code else None
    if error:
        raise RemoteLabError({**error, "exit_code": code})
    out.document(schema, without_schema(document))
    if code:
        raise typer.Exit(code)


def without_schema(document: dict[str, Any]) -> dict[str, Any]:
    """The engine's document, for one of ours."""
    return {key: value for key, value in document.items() if key != "schema"}


class _Documents(threading.Thread):
    """Reads JSON lines from a pipe; the last one is the result, the others are handed on."""

    def __init__(self, read: int, on_line: Line | None) -> None:
        super().__init__(daemon=True, name="console-output")
        self._file = open(read, "rb")  # noqa: SIM115
        self._on_line = on_line
        self._last: dict[str, Any] = {}
        self._problem: BaseException | None = None

    def run(self) -> None:
        try:
            with self._file:
                for line in self._file:
                    document = json.loads(line)
                    if not isinstance(document, dict):
                        raise ValueError("not an object")
                    if self._last and self._on_line:
                        self._on_line(self._last)
                    self._last = document
        except (ValueError, OSError, VadplabError) as exc:
            self._problem = exc

    def last(self) -> dict[str, Any]:
        """The last document, once the stream has ended."""
        self.join(10.0)
        if self._problem is not None:
            raise ConsoleFailed(f"the console printed something that is not a document: {self._problem}")
        return self._last
