# SPDX-License-Identifier: MIT
"""The lab's own view of the file system: private mounts that vanish with it.

An empty tmpfs lies on `/run`, so that names of namespaces, the fabric and everything that a daemon leaves there die with
the lab; `/proc` shows the lab's processes; `/etc/hosts` holds the lab's names, and no resolver is configured, so that no
name lookup leaves a host.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab.errors import PowerMissing
from lab.realise import kernel

RUN = Path("/run")
FABRIC = RUN / "vadplab" / "fabric"
CODE = Path(__file__).resolve().parents[2]


def enter(keep: Iterable[Path], names: Mapping[str, str]) -> None:
    """Builds the view, in a mount namespace that the caller has just made.

    Args:
        keep: folders that must stay reachable even if they lie under `/run`. names: `{host: address}` for `/etc/hosts`.

    Raises:
        PowerMissing: the kernel refuses one of the mounts.
    """
    try:
        kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
        kept = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in _under_run(keep)]
        kernel.mount("vadplab", RUN, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
        for path, fd in kept:
            path.mkdir(parents=True, exist_ok=True)
            kernel.mount(f"/proc/self/fd/{fd}", path, "", kernel.MS_BIND | kernel.MS_REC)
            os.close(fd)
        FABRIC.mkdir(parents=True)
        (RUN / "netns").mkdir()
        (RUN / "lock").mkdir(mode=0o1777)
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        _own_names(names)
    except OSError as exc:
        raise PowerMissing(f"the lab's own mounts: {exc.strerror}") from exc


def _under_run(keep: Iterable[Path]) -> list[Path]:
    wanted = [CODE, Path(sys.prefix), Path(sys.executable).parent, *keep]
    found = {path.resolve() for path in wanted}
    return sorted(path for path in found if path.is_relative_to(RUN) and path.is_dir())


def _own_names(names: Mapping[str, str]) -> None:
    lines = ["127.0.0.1 localhost", *(f"{address} {host}" for host, address in names.items())]
    for target, text in (
        (Path("/etc/hosts"), "\n".join(lines) + "\n"),
        (Path("/etc/resolv.conf"), "# no resolver: the lab's names are in /etc/hosts\n"),
    ):
        source = RUN / "vadplab" / target.name
        source.write_text(text)
        target = target.resolve()
        if target.exists():
            kernel.mount(str(source), target, "", kernel.MS_BIND)
