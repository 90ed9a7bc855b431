# SPDX-License-Identifier: MIT
"""`vadplab restore`: a disk of a restore point to a file (`disk`, also without that word), single files (`files`), a new VM (`vm`).

With the lab up a restore goes the way a job goes (console, service, Data Mover on the repository), recorded and judged. With
the lab down a disk or files are read from the repository's folder directly.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from typer.core import TyperGroup

from engine.console.__main__ import exit_code
from engine.console.commands import TargetExists
from engine.errors import InputError, VadplabError
from engine.filesystem import files
from engine.modes import names
from engine.restore.points import DiskUnknown
from engine.store.manifest import DiskEntry, Manifest
from engine.store.point_disk import PointDisk
from engine.store.restore import to_file
from engine.store.view import DiskView
from lab.cli import recorded
from lab.cli.job import Direction
from lab.cli.options import Json, absolute, any_lab, running_lab
from lab.cli.output import Out
from lab.cli.points import find
from lab.cli.progress import Progressing
from lab.disks import truth
from lab.disks.consistency import check as check_consistency
from lab.errors import exit_status
from lab.judge.report import combine
from lab.realise.folders import LabFolder


class RestoreGroup(TyperGroup):
    """A group in which `restore POINT …` means `restore disk POINT …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts `disk` before arguments that begin with no verb."""
        known = {*self.commands, *self.get_help_option_names(ctx)}
        if args and args[0] not in known:
            args = ["disk", *args]
        return list(super().parse_args(ctx, args))


class WritingMode(StrEnum):
    """Transport modes that can write; Direct SAN can not."""

    AUTO = names.AUTO
    HOTADD = names.HOTADD
    NBDSSL = names.NBDSSL
    NBD = names.NBD


app = typer.Typer(cls=RestoreGroup, no_args_is_help=True)

PointName = Annotated[str, typer.Argument(metavar="POINT", help="A restore point (`vadplab points`).")]
DiskNumber = Annotated[int, typer.Option("--disk", metavar="N", help="Number (1 for `Hard disk 1`) or key (2000).")]
VmName = Annotated[str | None, typer.Option("--vm", help="When several VMs have a point of that name.")]


@app.callback()
def restore() -> None:
    """Restore from a restore point: a disk to a file, single files, or a new VM."""


@app.command("disk")
def restore_disk(
    context: typer.Context,
    point: PointName,
    disk: DiskNumber,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The new file; holes stay holes.")],
    vm: VmName = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare with the storage's truth record.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Check its file system and ledger.")] = False,
    json: Json = False,
) -> None:
    """Restore a disk to a sparse file. Every block is checked against its digest; --compare checks against the truth."""
    out = Out(json)
    lab = any_lab(context)
    folder, manifest = find(lab, point, vm)
    entry = _disk(manifest, disk)
    target = absolute(to)
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
    if target.exists():
        out.text(f"{manifest.vm.name}, {entry.label}: restored to {target} ({target.stat().st_size} bytes)")
        _after(out, lab, manifest, entry, target, document, codes, compare=compare, check=check)
    document["exit_code"] = combine(*codes)
    out.document("restore/1", document)
    error = document.get("error")
    if error:
        _say_error(out, error)
    raise typer.Exit(combine(*codes))


@app.command("vm")
def restore_vm(
    context: typer.Context,
    point: PointName,
    name: Annotated[str, typer.Option("--name", metavar="NEW", help="The new VM's name.")],
    vm: VmName = None,
    vcenter: Annotated[
        str | None, typer.Option("--vcenter", help="The vCenter (default: the one that the VM was backed up from).")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="The ESXi host (default: one that mounts the datastore).")
    ] = None,
    datastore: Annotated[
        str | None, typer.Option("--datastore", help="Where to (default: the original disks').")
    ] = None,
    mode: Annotated[WritingMode | None, typer.Option("--mode", help="Transport mode (default: auto).")] = None,
    failover: Annotated[
        bool | None, typer.Option("--failover/--no-failover", help="Whether another mode may take over.")
    ] = None,
    direction: Annotated[
        Direction | None, typer.Option("--data-direction", help="Which Data Mover opens the data connection.")
    ] = None,
    json: Json = False,
) -> None:
    """Restore all disks into a new VM in vCenter, powered off: a run of its own, recorded and judged. Ctrl-C takes it back."""
    out = Out(json)
    lab = running_lab(context)
    _, manifest = find(lab, point, vm)
    argv = ["restore", "vm", point, "--name", name, "--vm", manifest.vm.name]
    for option, value in (
        ("--vcenter", vcenter),
        ("--host", host),
        ("--datastore", datastore),
        ("--mode", mode),
        ("--data-direction", direction),
    ):
        argv += [option, str(value)] if value is not None else []
    argv += [] if failover is None else ["--failover" if failover else "--no-failover"]
    with Progressing(out) as show_line:
        done = recorded.run(lab, "restore", argv, show_line)
    out.document("restore-vm/1", {k: v for k, v in done.document.items() if k != "schema"} | done.evidence())
    if done.document.get("error"):
        _say_error(out, done.document["error"])
    else:
        out.text(f"[green]{escape(name)}[/]: restored from {point} of {manifest.vm.name}")
    done.say(out)
    raise typer.Exit(done.exit_code)


@app.command("files")
def restore_files(
    context: typer.Context,
    point: PointName,
    paths: Annotated[list[str], typer.Argument(metavar="PATH…", help="Files or folders on the disk, from its root.")],
    disk: DiskNumber,
    to: Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help="An existing folder to write into.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Only list what is there.")] = False,
    partition: Annotated[
        int | None, typer.Option("--partition", min=1, help="Partition, where the disk has several.")
    ] = None,
    vm: VmName = None,
    json: Json = False,
) -> None:
    """Restore single files of an ext4 disk, without mounting it and without root. Nothing is overwritten."""
    out = Out(json)
    if listing == (to is not None):
        raise InputError("either --to FOLDER or --list", next="--list shows what is there, --to FOLDER restores it.")
    lab = any_lab(context)
    folder, manifest = find(lab, point, vm)
    entry = _disk(manifest, disk)
    paths = ["/" + path.lstrip("/") for path in paths]
    target = absolute(to) if to is not None else None
    if target is not None and not target.is_dir():
        raise TargetExists(f"{target} is no folder", next="Name a folder that exists; nothing was written.")
    document: dict[str, Any] = {
        "point": point,
        "vm": manifest.vm.name,
        "disk": entry.key,
        "to": str(target or "") or None,
    }
    if lab.running():
        argv = ["restore", "files", point, *paths, "--vm", manifest.vm.name, "--disk", str(entry.key)]
        argv += ["--list"] if target is None else ["--to", str(target)]
        argv += [] if partition is None else ["--partition", str(partition)]
        with Progressing(out) as show_line:
            done = recorded.run(lab, "restore", argv, show_line)
        document |= {k: v for k, v in done.document.items() if k != "schema"} | done.evidence()
        done.say(out)
    else:
        with DiskView(folder, entry.key) as view:
            found = files.fetch(view, paths, target, partition)
        errors = [one["error"] for one in found if one["error"]]
        document |= {"paths": found, "exit_code": exit_code(errors[0] if errors else None)}
    for one in document.get("paths", []):
        _say_path(out, one)
    if document.get("error") and not document.get("paths"):
        _say_error(out, document["error"])
    out.document("restore-files/1", document)
    raise typer.Exit(document["exit_code"])


def _say_path(out: Out, one: dict[str, Any]) -> None:
    if one["error"]:
        _say_error(out, one["error"])
    elif "entries" in one:
        out.table(
            ("mode", "size", "kind", "name"),
            (
                (e["mode"], e["size"], e["kind"], printable(e["name"] + (f" → {e['target']}" if e["target"] else "")))
                for e in one["entries"]
            ),
        )
    else:
        written = ", ".join(f"{kind} {one[kind]}" for kind in ("files", "folders", "links"))
        out.text(f"{escape(printable(one['path']))}: {written}; {one['bytes']} bytes of contents")
        for skipped in one["skipped"]:
            out.text(f"  [yellow]left out[/] {escape(printable(skipped))}")


def printable(name: str) -> str:
    """A name from somebody's disk, safe to show: what is no printable character (newline, escape) is written as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _say_error(out: Out, error: dict[str, Any]) -> None:
    out.text(
        f"[red]\\[{error['code']}][/] {escape(str(error['message']))}\n  [dim]next: {escape(str(error['next']))}[/]"
    )


def _from_folder(folder: Path, key: int, target: Path) -> dict[str, Any]:
    with PointDisk(folder, key) as disk:
        stats = to_file(disk, target)
    return {"size": stats.size, "written": stats.written, "clusters": stats.clusters}


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
    """Comparison and checks of the restored file. What can not be compared or checked is said in the document."""
    if compare:
        store = entry.path.partition("]")[0].removeprefix("[")
        try:
            record = truth.find(
                lab.fakes / f"storage-{store}",
                vm=manifest.vm.name,
                mark=manifest.session,
                key=entry.key,
                wait=truth.WAIT if lab.running() else 0.0,
            )
            comparison = truth.compare(target, record)
        except VadplabError as exc:
            document["comparison"] = {"equal": None, "error": exc.to_dict()}
            codes.append(exit_status(exc))
            _say_error(out, exc.to_dict())
        else:
            document["comparison"] = comparison.to_dict()
            codes.append(0 if comparison.equal else 1)
            verdict = "[green]equal[/]" if comparison.equal else f"[red]{comparison.differing} blocks differ[/]"
            out.text(f"  truth record of the storage: {verdict} ({comparison.blocks} blocks of 64 KiB)")
    if check:
        needs_ledger = is_guest_disk(lab, manifest.vm.name, entry)
        try:
            found = check_consistency(target, claimed=manifest.consistency, needs_ledger=needs_ledger)
        except VadplabError as exc:
            document["check"] = {"sound": None, "error": exc.to_dict()}
            codes.append(exit_status(exc))
            _say_error(out, exc.to_dict())
        else:
            document["check"] = found.to_dict()
            codes.append(0 if found.sound else 1)
            colour = "green" if found.sound else "red"
            whole = found.ledger and found.ledger.get("ok")
            ledger = f", ledger of {found.ledger.get('bookings')} rows unbroken" if found.ledger and whole else ""
            out.text(f"  file system: [{colour}]{found.filesystem}[/], claimed {found.claimed}{ledger}")
            for problem in found.problems:
                out.text(f"  [red]{problem}[/]")


def is_guest_disk(lab: LabFolder, vm: str, entry: DiskEntry) -> bool:
    """Whether the lab's inventory made this disk as the root disk of a guest that runs: then a ledger must be on it."""
    try:
        inventory = yaml.safe_load(lab.inventory_file.read_text()) or {}
    except (OSError, yaml.YAMLError):
        return False
    for machine in inventory.get("vms") or []:
        if machine.get("name") == vm and machine.get("power") == "on":
            disks = machine.get("disks") or []
            number = next((n for n in range(len(disks)) if entry.label == f"Hard disk {n + 1}"), None)
            return number is not None and disks[number].get("contents") == "guest"
    return False


def _disk(manifest: Manifest, disk: int) -> DiskEntry:
    for entry in manifest.disks:
        if disk == entry.key or entry.label == f"Hard disk {disk}":
            return entry
    known = ", ".join(f"{entry.label} ({entry.key})" for entry in manifest.disks)
    raise DiskUnknown(f"{manifest.point} has no disk {disk}; it has {known}")
