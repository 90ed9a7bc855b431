# SPDX-License-Identifier: MIT
"""Is a restored disk consistent? File system first, then the workload's ledger. Nothing is mounted and no root is needed.

A frozen file system was flushed: its `needs_recovery` flag is clear and `e2fsck -fn` finds no difference (its exit code
alone cannot fail on a hot copy). A crash-consistent one needs its journal replayed; a replayed copy must pass instead.
The ledger's database is taken out with debugfs and checked row by row. What is found is held against the restore point's
own *claim* (`file-system`, `application` or `crash`): a point that claims more than the disk holds is not sound.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import MissingError
from fakes.linux_guest import ledger

LEDGER_IN_DISK = "{root}/var/lib/ledger/ledger.db"
_DEADLINE = 120.0
_USABLE = ("file-system-consistent", "crash-consistent")
_FLUSHED = ("file-system", "application")
"""Claims under which the file system was frozen, so that no journal may be left to replay."""


class CheckFailed(MissingError):
    """The file system of a restored disk can not be checked."""

    code = "check.failed"
    advice = "Install e2fsprogs (`apt-get install e2fsprogs`); the restored file itself is there."


@dataclass(slots=True)
class Consistency:
    """`filesystem` is file-system-consistent | crash-consistent | damaged | none; `ledger` is the ledger's own report or None.

    `claimed`: what the restore point says of itself (None: nothing to compare with). `needs_ledger`: the disk is a guest's
    root disk, on which the workload keeps its ledger.
    """

    filesystem: str
    details: list[str] = field(default_factory=list)
    ledger: dict[str, Any] | None = None
    claimed: str | None = None
    needs_ledger: bool = False

    @property
    def problems(self) -> list[str]:
        """Why the disk is not what it should be; empty when it is sound."""
        found = []
        if self.filesystem not in _USABLE:
            found.append(f"file system: {self.filesystem}")
        elif self.claimed in _FLUSHED and self.filesystem != "file-system-consistent":
            found.append(f"the restore point claims {self.claimed} consistency, but the journal had to be replayed")
        if self.ledger is not None and not self.ledger.get("ok"):
            found.append("the ledger is broken")
        if self.ledger is None and self.needs_ledger:
            found.append("this is a guest's disk, but there is no ledger on it")
        return found

    @property
    def sound(self) -> bool:
        """True when the file system is as good as was claimed, and the ledger is there where it must be, and unbroken."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "filesystem": self.filesystem,
            "claimed": self.claimed,
            "sound": self.sound,
            "problems": self.problems,
            "details": self.details,
            "ledger": self.ledger,
        }


def check(image: Path, *, claimed: str | None = None, needs_ledger: bool = False) -> Consistency:
    """Checks an ext4 image file; it is never written to. `claimed`, `needs_ledger`: as of `Consistency`.

    Raises:
        CheckFailed: a program of e2fsprogs is not installed, or does not end.
    """
    found = _inspect(image)
    found.claimed, found.needs_ledger = claimed, needs_ledger
    return found


def _inspect(image: Path) -> Consistency:
    header = _run("dumpe2fs", "-h", str(image))
    if header.returncode != 0:
        return Consistency(
            "none", [header.stderr.strip().splitlines()[-1] if header.stderr.strip() else "no ext4 file system"]
        )
    with tempfile.TemporaryDirectory(prefix="vadplab-check-") as folder:
        if "needs_recovery" not in header.stdout:
            found = Consistency("file-system-consistent" if _clean(image) else "damaged")
            source = image
        else:
            source = Path(folder) / "replayed.img"
            subprocess.run(["cp", "--sparse=always", str(image), str(source)], check=True, timeout=_DEADLINE)
            _run("e2fsck", "-fy", "-E", "journal_only", str(source))
            found = Consistency("crash-consistent" if _clean(source) else "damaged", ["journal replayed on a copy"])
        found.ledger = _ledger(source, Path(folder))
    return found


def _clean(image: Path) -> bool:
    """`e2fsck -fn` prints no difference: exit 0 and no complaint among its lines."""
    result = _run("e2fsck", "-fn", str(image))
    complaints = [
        line for line in result.stdout.splitlines() if "?" in line or "WARNING" in line or "error" in line.lower()
    ]
    return result.returncode == 0 and not complaints


def _ledger(image: Path, folder: Path) -> dict[str, Any] | None:
    """Takes the ledger's database (and its write-ahead log) out of the image and checks it; None where there is no ledger."""
    for root in ("", "/upper", "/root"):
        inside = LEDGER_IN_DISK.format(root=root)
        target = folder / "ledger.db"
        _run("debugfs", "-R", f"dump {inside} {target}", str(image))
        if target.exists() and target.stat().st_size:
            _run("debugfs", "-R", f"dump {inside}-wal {target}-wal", str(image))
            return dict(ledger.check(target))
        target.unlink(missing_ok=True)
    return None


def _run(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    path = shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin") or program
    try:
        return subprocess.run([path, *args], capture_output=True, text=True, timeout=_DEADLINE, check=False)
    except FileNotFoundError as exc:
        raise CheckFailed(f"{program} is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise CheckFailed(f"{program} did not end within {_DEADLINE:.0f} s") from exc
