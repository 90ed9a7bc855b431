# SPDX-License-Identifier: MIT
"""`vadplab points`: the restore points in the lab's repositories: list, verify, prune, import.

With the lab up, verify, prune and import go from the console over the Backup Service to the repository, recorded and judged;
with the lab down, and for lists and `--dry-run`, the repositories' folders are read directly.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from engine.errors import InputError, VadplabError
from engine.restore.points import PointUnknown
from engine.store import health, importing, retention
from engine.store.manifest import Manifest
from engine.store.points import Point, Points
from lab.cli import recorded
from lab.cli.options import Json, absolute, any_lab
from lab.cli.output import Out, size_text
from lab.errors import RemoteLabError, exit_status
from lab.judge.report import combine
from lab.realise.folders import LabFolder

app = typer.Typer(invoke_without_command=True)

DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]

Vm = Annotated[str | None, typer.Option("--vm", help="Points of this VM only.")]


class RepositoryUnknown(InputError):
    """The lab has no such repository, or several and none was named."""

    code = "point.repository"
    advice = "Name a repository host with --repository; `vadplab points` shows them."


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


@app.callback()
def points(context: typer.Context, json: Json = False) -> None:
    """The restore points of a lab. Without a verb: lists them, oldest first."""
    if context.invoked_subcommand is None:
        _list(context, json)


@app.command("list")
def list_points(context: typer.Context, json: Json = False) -> None:
    """List the restore points, oldest first."""
    _list(context, json)


def _list(context: typer.Context, json: bool) -> None:
    out = Out(json)
    found = every(any_lab(context))
    out.document("points/1", {"points": [{"repository": host, **point.summary()} for host, point in found]})
    columns = ["point", "VM", "job", "kind", "consistency", "disks", "stored"]
    several = len({host for host, _ in found}) > 1
    out.table(
        [*columns, "repository"] if several else columns,
        (
            (*_row(p.manifest), *([host] if several else [])) if p.manifest else (p.folder.name, f"damaged: {p.error}")
            for host, p in found
        ),
    )


@app.command()
def verify(
    context: typer.Context,
    point: Annotated[str | None, typer.Argument(metavar="[POINT]", help="One point (default: all).")] = None,
    vm: Vm = None,
    deep: Annotated[bool, typer.Option("--deep", help="Check the structure of the files as well.")] = False,
    json: Json = False,
) -> None:
    """Read every byte of restore points and of what they stand on; name what is damaged and what is intact."""
    out, lab = Out(json), any_lab(context)
    found: list[dict[str, Any]] = []
    evidence: dict[str, Any] = {}
    codes: list[int] = []
    if lab.running():
        options = [*([point] if point else []), *(["--vm", vm] if vm else []), *(["--deep"] if deep else [])]
        done = _asked(lab, ["points", "verify", *options])
        found, evidence = done.document["points"], done.evidence()
        codes.append(done.exit_code)
    elif point is not None:
        folder, _ = find(lab, point, vm)
        found += _health(_host_of(lab, folder), health.verify(folder.parent, only=folder.name, deep=deep))
    else:
        for host, repository in repositories(lab).items():
            out.notice(f"[dim]{host}: reading {repository}[/]")
            for one in health.verify_repository(repository, vm=vm, deep=deep):
                found += _health(host, one)
    if not found:
        raise PointUnknown("there is no restore point to verify" + (f" of {vm}" if vm else ""))
    intact = all(p["intact"] and not p["damage"] for p in found)
    code = combine(*codes, 0 if intact else 1)
    out.document("points-verify/1", {**evidence, "intact": intact, "points": found, "exit_code": code})
    out.table(
        ("point", "VM", "intact", "disks that can be restored", "repository"),
        (
            (p["point"], p["vm"], _yes(p["intact"]), ", ".join(map(str, p["intact_disks"])), p["repository"])
            for p in found
        ),
    )
    for damage in (d for p in found for d in p["damage"]):
        out.text(f"[red]damaged[/] {escape(str(damage['text']))}")
    if not intact and all(p["intact"] for p in found):
        out.text(
            "Every one of these points can still be restored: what is damaged is not needed for it, or can be made up for."
        )
    raise typer.Exit(code)


@app.command()
def prune(
    context: typer.Context,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Keep the newest N points of each VM.")] = None,
    days: Annotated[int | None, typer.Option("--days", min=1, help="Keep points not older than N days.")] = None,
    vm: Vm = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_of: Annotated[
        datetime | None,
        typer.Option(
            "--as-of", metavar="DATE", formats=DATES, help="With --dry-run: as if it were that day, or time (UTC)."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Remove old restore points; those that others stand on are merged into them before. The newest of a VM always stays.

    With --count and --days a point goes when both let it go.
    """
    policy = retention.Policy(count, days)
    if as_of is not None and not dry:
        raise InputError("--as-of needs --dry-run", next="Points go by the real time only; nothing was removed.")
    out, lab = Out(json), any_lab(context)
    now = datetime.now(UTC) if as_of is None else as_of.replace(tzinfo=UTC)
    done: list[dict[str, Any]] = []
    codes: list[int] = []
    evidence: dict[str, Any] = {}
    through_service = lab.running() and not dry
    if through_service:
        options = [word for key, value in (("--count", count), ("--days", days), ("--vm", vm)) if value is not None
                   for word in (key, str(value))]  # fmt: skip
        asked = _asked(lab, ["points", "prune", *options])
        done, evidence = asked.document["vms"], asked.evidence()
        codes += [asked.exit_code, *(1 for one in done if one["error"])]
    for host, folder in ({} if through_service else repositories(lab)).items():
        store = Points(folder)
        readable = [p.manifest for p in store.list() if p.manifest is not None]
        for job, name in sorted({(m.job, m.vm.name) for m in readable if vm in (None, m.vm.name)}):
            entry: dict[str, Any] = {"repository": host, "job": job, "vm": name, "merges": [], "removals": []}
            try:
                plan = retention.plan_for if dry else retention.apply
                entry |= plan(store, job, name, policy, now).to_dict() | {"error": None}
            except VadplabError as exc:
                entry["error"] = exc.to_dict()
                codes.append(exit_status(exc))
            done.append(entry)
    if vm is not None and not done:
        raise PointUnknown(f"there is no restore point of {vm}")
    code = combine(*codes)
    supposed = None if as_of is None else now.isoformat()
    out.document("points-prune/1", {**evidence, "dry_run": dry, "as_of": supposed, "vms": done, "exit_code": code})
    out.table(
        ("VM", "job", "would be merged" if dry else "merged", "would go" if dry else "removed", "repository", "error"),
        (
            (e["vm"], e["job"], *(", ".join(e[k]) for k in ("merges", "removals")), e["repository"], _words(e["error"]))
            for e in done
        ),
    )
    raise typer.Exit(code)


@app.command("import")
def import_points(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A copied repository, or part of one.")],
    repository: Annotated[
        str | None, typer.Option("--repository", metavar="HOST", help="Where to (default: the only one).")
    ] = None,
    json: Json = False,
) -> None:
    """Copy restore points of a folder into a repository; each is checked before it becomes visible."""
    out, lab = Out(json), any_lab(context)
    host, target = _repository(lab, repository)
    source = absolute(folder)
    if not source.is_dir():
        raise InputError(f"{source} is no folder", next="Name a folder with restore points.")
    evidence: dict[str, Any] = {}
    if lab.running():
        asked = _asked(lab, ["points", "import", str(source), "--repository", host])
        done, evidence = {key: asked.document[key] for key in ("points", "refused")}, asked.evidence()
    else:
        done = importing.import_points(Points(target), source).to_dict()
    code = combine(*([evidence["exit_code"]] if evidence else []), *(1 for _ in done["refused"]))
    out.document("points-import/1", {**evidence, "repository": host, **done, "exit_code": code})
    for path in done["points"]:
        out.text(f"[green]imported[/] {escape(path)}")
    for one in done["refused"]:
        out.text(f"[red]refused[/] {escape(one['folder'])}: {escape(str(one['message']))}")
    raise typer.Exit(code)


def _asked(lab: LabFolder, argv: list[str]) -> recorded.Recorded:
    """A console command about points, recorded and judged. Raises the error that it ended with."""
    done = recorded.run(lab, "restore", argv)
    if error := done.document.get("error"):
        raise RemoteLabError({**error, "exit_code": done.code})
    return done


def _repository(lab: LabFolder, name: str | None) -> tuple[str, Path]:
    known = repositories(lab)
    if name is None and len(known) == 1:
        return next(iter(known.items()))
    if name is None or name not in known:
        said = f"{name} is no repository of this lab" if name else "which repository?"
        raise RepositoryUnknown(f"{said}: there are {', '.join(known) or 'none'}")
    return name, known[name]


def _host_of(lab: LabFolder, folder: Path) -> str:
    return next(host for host, path in repositories(lab).items() if folder.is_relative_to(path))


def _health(host: str, found: health.Health) -> list[dict[str, Any]]:
    return [{"repository": host, **point.to_dict()} for point in found.points]


def _yes(state: bool) -> str:
    return "yes" if state else "no"


def _words(error: dict[str, Any] | None) -> str:
    return f"[{error['code']}] {error['message']}" if error else ""


def _row(manifest: Manifest) -> tuple[str, ...]:
    return (
        manifest.point,
        manifest.vm.name,
        manifest.job,
        manifest.kind,
        manifest.consistency,
        ", ".join(str(disk.key) for disk in manifest.disks),
        size_text(sum(disk.stored for disk in manifest.disks)),
    )
