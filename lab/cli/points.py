# SPDX-License-Identifier: MIT
"""`vadplab points`: the restore points in the lab's repositories. Read from the repositories' folders, lab up or down."""

from __future__ import annotations

from pathlib import Path

import typer

from engine.errors import InputError
from engine.store.manifest import Manifest
from engine.store.points import Point, Points
from lab.cli.options import Json, any_lab
from lab.cli.output import Out
from lab.realise.folders import LabFolder

app = typer.Typer()


class PointUnknown(InputError):
    """No restore point of that name is in the lab's repositories."""

    code = "point.unknown"
    advice = "`vadplab points` lists them."


def repositories(lab: LabFolder) -> dict[str, Path]:
    """{host: repository folder} of every repository of the lab."""
    return {path.parents[1].name: path for path in sorted(lab.path.glob("hosts/*/var/repository"))}


def every(lab: LabFolder) -> list[tuple[str, Point]]:
    """(repository host, restore point) of every visible point."""
    return [(host, point) for host, folder in repositories(lab).items() for point in Points(folder).list()]


def find(lab: LabFolder, name: str, vm: str | None) -> tuple[Path, Manifest]:
    """Folder and manifest of the point of that name.

    Raises:
        PointUnknown: there is none, or several VMs have one and `vm` does not choose.
    """
    readable = [(p.folder, p.manifest) for _, p in every(lab) if p.manifest is not None]
    found = [(folder, m) for folder, m in readable if m.point == name and vm in (None, m.vm.name)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise PointUnknown(f"there is no restore point {name}" + (f" of {vm}" if vm else ""))
    raise PointUnknown(f"several VMs have a restore point {name}: {', '.join(m.vm.name for _, m in found)}")


@app.command("points")
def points(context: typer.Context, json: Json = False) -> None:
    """The restore points of a lab, oldest first."""
    out = Out(json)
    found = every(any_lab(context))
    out.document("points/1", {"points": [{"repository": host, **point.summary()} for host, point in found]})
    out.table(
        ("point", "VM", "job", "consistency", "disks", "stored", "repository"),
        (_row(host, p.manifest) if p.manifest else (p.folder.name, f"damaged: {p.error}") for host, p in found),
    )


def _row(host: str, manifest: Manifest) -> tuple[str, ...]:
    return (
        manifest.point,
        manifest.vm.name,
        manifest.job,
        manifest.consistency,
        ", ".join(str(disk.key) for disk in manifest.disks),
        f"{sum(disk.stored for disk in manifest.disks) / 1048576:.1f} MiB",
        host,
    )
