# SPDX-License-Identifier: MIT
"""`vadplab restore`: a disk of a restore point to a file; compared with the storage's truth record on request.

With the lab up it runs like a job (console, service, Data Mover on the repository) and is recorded and judged; with the
lab down the repository's folder is read directly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from engine.errors import InputError
from engine.store.manifest import DiskEntry, Manifest
from engine.store.restore import PointDisk, to_file
from lab.cli import recorded
from lab.cli.options import Json, any_lab, existing_file
from lab.cli.output import Out
from lab.cli.points import find
from lab.cli.progress import Progressing
from lab.judge import truth
from lab.judge.consistency import check as check_consistency
from lab.judge.report import combine
from lab.realise.folders import LabFolder

app = typer.Typer()


class DiskUnknown(InputError):
    """The restore point has no such disk."""

    code = "point.disk"
    advice = "Name a disk by its number (1 for `Hard disk 1`) or its key (2000); `vadplab points --json` lists them."


class TargetExists(InputError):
    """The file to restore to is there already, or its folder is not."""

    code = "restore.target"
    advice = "Name a new file in a folder that exists; nothing was overwritten."


@app.command("restore")
def restore(
    context: typer.Context,
    point: Annotated[str, typer.Argument(metavar="POINT", help="A restore point (`vadplab points`).")],
    disk: Annotated[int, typer.Option("--disk", metavar="N", help="Number (1 for `Hard disk 1`) or key (2000).")],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The new file; holes stay holes.")],
    vm: Annotated[str | None, typer.Option("--vm", help="When several VMs have a point of that name.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare with the storage's truth record.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Check its file system and ledger.")] = False,
    json: Json = False,
) -> None:
    """Restore a disk to a sparse file. Every block is checked against its digest; --compare checks against the truth."""
    out = Out(json)
    lab = any_lab(context)
    folder, manifest = find(lab, point, vm)
    entry = _disk(manifest, disk)
    target = existing_file(to)
    if target.exists() or not target.parent.is_dir():
        raise TargetExists(f"{target} " + ("exists" if target.exists() else "is in no folder"))
    codes: list[int] = []
    document: dict[str, Any] = {"point": point, "vm": manifest.vm.name, "disk": entry.key, "file": str(target)}
    if lab.running():
        argv = ["restore", point, "--vm", manifest.vm.name, "--disk", str(entry.key), "--to", str(target)]
        with Progressing(out) as show_line:
            done = recorded.run(lab, "restore", argv, show_line)
        document |= {k: v for k, v in done.document.items() if k != "schema"} | done.evidence()
        codes.append(done.exit_code)
        done.say(out)
    else:
        document |= {"result": "success", **_from_folder(folder, entry.key, target)}
    _after(out, lab, manifest, entry, target, document, codes, compare=compare, check=check)
    document["exit_code"] = combine(*codes)
    out.document("restore/1", document)
    error = document.get("error")
    if error:
        out.text(f"[red]\\[{error['code']}][/] {error['message']}\n  [dim]next: {error['next']}[/]")
    raise typer.Exit(combine(*codes))


def _from_folder(folder: Path, key: int, target: Path) -> dict[str, Any]:
    with PointDisk(folder, key) as disk:
        stats = to_file(disk, target)
    return {"size": stats.size, "written": stats.written, "blocks": stats.blocks}


def _after(
    out: Out,
    lab: LabFolder,
    manifest: Manifest,
    entry: DiskEntry,
    target: Path,
    document: dict[str, Any],
    codes: list[int],
    *,
    compare: bool,
    check: bool,
) -> None:
    """Comparison and checks of the restored file; an unsuccessful restore has none."""
    if not target.exists():
        return
    out.text(f"{manifest.vm.name}, {entry.label}: restored to {target} ({target.stat().st_size} bytes)")
    if compare:
        store = entry.path.partition("]")[0].removeprefix("[")
        record = truth.find(lab.fakes / f"storage-{store}", vm=manifest.vm.name, mark=manifest.session, key=entry.key)
        comparison = truth.compare(target, record)
        document["comparison"] = comparison.to_dict()
        codes.append(0 if comparison.equal else 1)
        verdict = "[green]equal[/]" if comparison.equal else f"[red]{comparison.differing} blocks differ[/]"
        out.text(f"  truth record of the storage: {verdict} ({comparison.blocks} blocks of 64 KiB)")
    if check:
        consistency = check_consistency(target)
        document["consistency"] = consistency.to_dict()
        codes.append(0 if consistency.sound else 1)
        colour = "green" if consistency.sound else "red"
        ledger = f", ledger of {consistency.ledger.get('bookings')} rows unbroken" if consistency.ledger else ""
        out.text(f"  file system: [{colour}]{consistency.filesystem}[/]{ledger}")


def _disk(manifest: Manifest, disk: int) -> DiskEntry:
    for entry in manifest.disks:
        if disk == entry.key or entry.label == f"Hard disk {disk}":
            return entry
    known = ", ".join(f"{entry.label} ({entry.key})" for entry in manifest.disks)
    raise DiskUnknown(f"{manifest.point} has no disk {disk}; it has {known}")
