# SPDX-License-Identifier: MIT
"""Is a restored disk consistent? File system first, then the workload's ledger. Nothing is mounted and no root is needed.

A frozen file system was flushed: its `needs_recovery` flag is clear and `e2fsck -fn` finds no difference (its exit code
alone cannot fail on a hot copy). A crash-consistent one needs its journal replayed; a replayed copy must pass instead.
The ledger's database is taken out with debugfs and checked row by row.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes.linux_guest import ledger

LEDGER_IN_DISK = "{root}/var/lib/ledger/ledger.db"
_DEADLINE = 120.0


@dataclass(slots=True)
class Consistency:
    """`filesystem` is file-system-consistent | crash-consistent | damaged | none; `ledger` is the ledger's own report or None."""

    filesystem: str
    details: list[str] = field(default_factory=list)
    ledger: dict[str, Any] | None = None

    @property
    def sound(self) -> bool:
        """True when the file system is usable and the ledger, if there is one, is unbroken."""
        usable = self.filesystem in ("file-system-consistent", "crash-consistent")
        return usable and (self.ledger is None or bool(self.ledger.get("ok")))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"filesystem": self.filesystem, "sound": self.sound, "details": self.details, "ledger": self.ledger}


def check(image: Path) -> Consistency:
    """Checks an ext4 image file; it is never written to."""
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
    return subprocess.run([path, *args], capture_output=True, text=True, timeout=_DEADLINE, check=False)
