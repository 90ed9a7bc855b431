# SPDX-License-Identifier: MIT
"""The folders of the labs: where each lab keeps its state, which lab a command means, whether it runs.

`$VADPLAB_HOME` (default `$XDG_STATE_HOME/vadplab`, else `~/.local/state/vadplab`) holds `labs/<name>/`; the layout of one
is in `docs/architecture.md`. A lab runs exactly as long as somebody holds the lock on its `lock` file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import InputError
from lab.errors import LabAmbiguous, LabNotRunning, LabRunning, LabUnknown

DEFAULT_NAME = "lab"
STATE_SCHEMA = "vadplab.state/1"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def home(environment: Mapping[str, str] | None = None) -> Path:
    """The folder that holds `labs/`."""
    env = os.environ if environment is None else environment
    if env.get("VADPLAB_HOME"):
        return Path(env["VADPLAB_HOME"]).absolute()
    base = Path(env["XDG_STATE_HOME"]) if env.get("XDG_STATE_HOME") else Path.home() / ".local" / "state"
    return base.absolute() / "vadplab"


@dataclass(frozen=True, slots=True)
class LabFolder:
    """One lab's folder."""

    path: Path

    @property
    def name(self) -> str:
        """The lab's name."""
        return self.path.name

    @property
    def state_file(self) -> Path:
        """What is known about the lab from outside; written before anything is created."""
        return self.path / "state.json"

    @property
    def control_socket(self) -> Path:
        """The supervisor's control socket."""
        return self.path / "control.sock"

    @property
    def supervisor_log(self) -> Path:
        """Log of launcher, supervisor and zygote."""
        return self.path / "supervisor.log"

    @property
    def topology_file(self) -> Path:
        """Copy of the topology that this lab runs."""
        return self.path / "topology.yaml"

    @property
    def policy_file(self) -> Path:
        """Copy of the firewall policy that this lab runs."""
        return self.path / "policy.yaml"

    @property
    def inventory_file(self) -> Path:
        """The inventory that the fakes of this lab present."""
        return self.path / "inventory.yaml"

    @property
    def pki(self) -> Path:
        """The lab CA and one certificate per host."""
        return self.path / "pki"

    @property
    def runs(self) -> Path:
        """One folder per run."""
        return self.path / "runs"

    @property
    def fakes(self) -> Path:
        """State and evidence of the fakes."""
        return self.path / "fakes"

    def host(self, name: str) -> Path:
        """A host's folder, with `etc`, `var` and `log` below."""
        return self.path / "hosts" / name

    def log(self, host: str | None, process: str) -> Path:
        """A process's log; processes of no host belong to `fabric`."""
        return self.host(host or "fabric") / "log" / f"{process}.log"

    def make(self, hosts: list[str]) -> None:
        """Makes the folders that every lab has (private to this user)."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        for folder in (self.pki, self.runs, self.fakes):
            folder.mkdir(exist_ok=True)
        for host in (*hosts, "fabric"):
            for part in ("etc", "var", "log"):
                (self.host(host) / part).mkdir(parents=True, exist_ok=True)

    def lock(self) -> int:
        """Takes the lab's lock; the descriptor that holds it.

        Raises:
            LabRunning: somebody has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise LabRunning(f"the lab {self.name} is up already") from None
        return fd

    def running(self) -> bool:
        """Whether the lab is up (or on its way up or down)."""
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def state(self) -> dict[str, Any]:
        """The state file's document; empty when there is none."""
        try:
            document = json.loads(self.state_file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def write_state(self, **changes: Any) -> None:
        """Replaces the state file by itself with `changes`; readers never see half of it."""
        document = {**self.state(), "schema": STATE_SCHEMA, "name": self.name, **changes}
        temporary = self.path / f".state.{os.getpid()}"
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(self.state_file)

    def purge(self) -> None:
        """Removes the folder with all it holds.

        Raises:
            LabRunning: the lab is up.
        """
        fd = self.lock()
        try:
            shutil.rmtree(self.path)
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)


def folder(name: str, root: Path | None = None) -> LabFolder:
    """The folder of a lab of that name, existing or not.

    Raises:
        InputError: the name can not be one.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for a lab: lower-case letters, digits and hyphens, 32 at most")
    return LabFolder((root or home()) / "labs" / name)


def existing(root: Path | None = None) -> list[LabFolder]:
    """Every lab that has a folder, by name."""
    labs = (root or home()) / "labs"
    if not labs.is_dir():
        return []
    return [LabFolder(path) for path in sorted(labs.iterdir()) if _NAME.fullmatch(path.name) and path.is_dir()]


def select(name: str | None, *, running: bool, root: Path | None = None) -> LabFolder:
    """The lab that a command means: the named one; else the only one that runs; else the only one there is.

    Args:
        running: whether the command needs a running lab.

    Raises:
        LabNotRunning, LabUnknown: there is none. LabAmbiguous: there are several.
    """
    if name is not None:
        lab = folder(name, root)
        if not lab.path.is_dir():
            if running:
                next_step = f"Bring it up with `vadplab --lab {name} up`; `vadplab labs` lists the labs that exist."
                raise LabNotRunning(f"there is no lab {name}", next=next_step)
            raise LabUnknown(f"there is no lab {name}")
        if running and not lab.running():
            raise LabNotRunning(f"the lab {name} is not running", next=f"Bring it up with `vadplab --lab {name} up`.")
        return lab
    labs = existing(root)
    up = [lab for lab in labs if lab.running()]
    candidates = up if up or running else labs
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise LabAmbiguous(f"there are {len(candidates)} labs: {', '.join(lab.name for lab in candidates)}")
    raise (LabNotRunning if running else LabUnknown)("no lab is running" if running else "there is no lab")
