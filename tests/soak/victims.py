# SPDX-License-Identifier: MIT
"""What can be killed: processes of the lab, found from outside by their pid namespace, host (network namespace) and name."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.harness import Lab, run_text

LISTENING = "0A"
PORTS = {"backup-server": 9392, "proxy-1": 6162, "proxy-2": 6162, "repository-1": 6162}
"""Services that the lab starts again when they die, and the ports by which they are ready."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process: pid as seen from outside, the host it runs on, its short name, its command line."""

    pid: int
    host: str
    name: str
    command: str


@dataclass(frozen=True, slots=True)
class Victim:
    """A kind of process; `matches` says which ones, and all of them are killed together."""

    name: str
    matches: Callable[[Process], bool]


VICTIMS = (
    Victim("manager", lambda p: "engine.manager" in p.command),
    Victim("mover on a proxy", lambda p: "--role source" in p.command),
    Victim("mover on the repository", lambda p: "--role target" in p.command),
    Victim("one mover", lambda p: "engine.mover" in p.command),
    Victim("transport of a proxy", lambda p: p.name == "transport" and p.host in ("proxy-1", "proxy-2")),
    Victim("transport of the repository", lambda p: p.name == "transport" and p.host == "repository-1"),
    Victim("service", lambda p: p.name == "backup-service"),
    Victim("everything on the repository's host", lambda p: p.host == "repository-1"),
)


class Hosts:
    """The hosts of a running lab, known by their network namespaces."""

    def __init__(self, lab: Lab) -> None:
        self._names: dict[str, str] = {}
        script = "import os; print(os.readlink('/proc/self/ns/net'))"
        for host in PORTS:
            said = run_text(lab.home, "--lab", lab.name, "exec", host, "--", sys.executable, "-c", script)
            assert said.returncode == 0, said.stderr
            self._names[said.stdout.strip()] = host
        self._pids = Path(f"/proc/{lab.folder.state()['supervisor']['pid']}/ns/pid").readlink()

    def processes(self) -> list[Process]:
        """The processes that run now on these hosts."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it ended meanwhile
                if not entry.name.isdigit() or (entry / "ns/pid").readlink() != self._pids:
                    continue
                host = self._names.get(str((entry / "ns/net").readlink()))
                if host is not None:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append(Process(int(entry.name), host, (entry / "comm").read_text().strip(), command))
        return found

    def kill(self, victim: Victim) -> list[Process]:
        """SIGKILL for every process of that kind; those that were there."""
        found = [process for process in self.processes() if victim.matches(process)]
        if victim.name == "one mover":
            del found[1:]
        return [process for process in found if _killed(process.pid)]

    def serving(self) -> set[str]:
        """Hosts whose service listens."""
        return {p.host for p in self.processes() if p.host in PORTS and _listens(p.pid, PORTS[p.host])}


def _killed(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _listens(pid: int, port: int) -> bool:
    try:
        rows = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return False
    fields = [row.split() for row in rows]
    return any(row[1].endswith(f":{port:04X}") and row[3] == LISTENING for row in fields)
