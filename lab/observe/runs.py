# SPDX-License-Identifier: MIT
"""Run folders: `runs/<run>/`, what is in them, and how many are kept.

`run.json` is written when the recording begins and again when it ends; without `ended` the recording was cut short.
Before a new run the oldest folders beyond the limits go, then the free space is checked.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.errors import InputError
from lab.observe.capture import free_bytes
from lab.observe.errors import NoSpace, RunUnknown

RUN_SCHEMA = "vadplab.run/1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


class RunNameInvalid(InputError):
    """A run's name can not be the name of a folder."""

    code = "run.name"


@dataclass(frozen=True, slots=True)
class Limits:
    """How many run folders are kept: at most `count`, `size` bytes in all, none older than `age` seconds; `spare` bytes
    of the file system stay free."""

    count: int = 200
    size: int = 8 << 30
    age: float = 30 * 86400.0
    spare: int = 256 << 20


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run's folder and its `run.json`."""

    path: Path
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """The run."""
        return self.path.name

    @property
    def began(self) -> int:
        """When the recording began, UTC ns (0 when it never did)."""
        return int((self.about.get("began") or {}).get("utc") or 0)

    @property
    def complete(self) -> bool:
        """Whether the recording ended as it should."""
        return bool(self.about.get("ended"))

    def size(self) -> int:
        """Bytes on disk."""
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())


def run_name(kind: str, session: str) -> str:
    """Name of a new run: when, what, and the beginning of its session."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{kind}-{session[:6]}"


def new_folder(runs: Path, run: str) -> Path:
    """Makes the folder of a new run.

    Raises:
        RunNameInvalid: it can not be a folder's name, or there is one already.
    """
    if not _NAME.fullmatch(run):
        raise RunNameInvalid(f"{run!r} can not be the name of a run: letters, digits, '.', '_' and '-', at most 80")
    folder = runs / run
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise RunNameInvalid(f"there is a run {run} already") from None
    return folder


def every(runs: Path) -> list[RunFolder]:
    """All run folders, oldest first."""
    found = []
    for path in runs.iterdir() if runs.is_dir() else []:
        if path.is_dir():
            found.append(RunFolder(path, _about(path)))
    return sorted(found, key=lambda r: (r.began or int(r.path.stat().st_mtime * 1e9), r.name))


def find(runs: Path, run: str | None) -> RunFolder:
    """The run of that name, or the latest one.

    Raises:
        RunUnknown: there is none.
    """
    known = every(runs)
    if run is None:
        if not known:
            raise RunUnknown("this lab has no run yet", next="Run a job: `vadplab job run demo`.")
        return known[-1]
    for candidate in known:
        if candidate.name == run:
            return candidate
    raise RunUnknown(f"no run {run}")


def prune(runs: Path, limits: Limits, now: float | None = None) -> list[str]:
    """Removes the oldest folders beyond the limits, leaving room for one more; returns their names."""
    now = time.time() if now is None else now
    kept = every(runs)
    gone = [r for r in kept if r.began and now - r.began / 1e9 > limits.age]
    kept = [r for r in kept if r not in gone]
    sizes = {r.name: r.size() for r in kept}
    while kept and (len(kept) >= limits.count or sum(sizes[r.name] for r in kept) > limits.size):
        gone.append(kept.pop(0))
    for run in gone:
        shutil.rmtree(run.path)
    return [r.name for r in gone]


def check_space(runs: Path, limits: Limits) -> None:
    """Raises NoSpace when less than `limits.spare` bytes are free."""
    free = free_bytes(runs)
    if free < limits.spare:
        raise NoSpace(f"{runs}: {free >> 20} MiB are free, a run needs {limits.spare >> 20} MiB")


def write_json(path: Path, document: Any) -> None:
    """Replaces a JSON file in one step."""
    partial = path.with_name(path.name + ".new")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)


def _about(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
