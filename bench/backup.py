# SPDX-License-Identifier: MIT
"""One disk: full backup, incremental of 3 % changed, restore, by the engine's movers and by established tools.

Ours ends when the restore point is visible: everything is synced, was read back from the file, and has the digests that were
taken at the source. Source and repository are processes of their own with mutual TLS between them; what serves the disk (host,
array, bus) runs on the same cores. Interpreters are started before the clock; other tools' own start is part of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import disk, goals, hosts, peers
from bench.peers import DEADLINE, Run
from bench.rows import Options, Result, Row, Stage, compare

TITLE = "backup"
TOOLS = peers.TOOLS
CHANGED = 0.03
NBDCOPY, QEMU, QEMU_WIDE = (
    "nbdcopy (raw, uncompressed)",
    "qemu-img convert -c zstd",
    "qemu-img convert -c zstd, -m16 -W",
)
RESTIC, BORG, BORG_ZSTD, ALONE = "restic", "borg (lz4, its default)", "borg (zstd 1)", "zstd 1 alone, two threads"
QEMU_RESTORE, LOCAL, LINK = "qemu-img convert", "vadplab restore, on the repository", "vadplab restore, over the link"
MODES = ("nbd", "nbdssl", "san", "hotadd")
OURS = {mode: f"vadplab {mode}" for mode in MODES}
BY_CBT = ("nbd", "nbdssl", "hotadd")
"""Modes that do not tell allocated areas by themselves: a job takes them from the changed-block query for `*`."""
SOCKET = "vadplab, NBD socket as source"
FULL, INCREMENTAL, RESTORE = "full", "incremental, 3 % changed", "restore"


@dataclass
class Served:
    """An image and everything that serves it; `hosts` by kind of source."""

    image: Path
    uri: str
    hosts: dict[str, hosts.Host]

    def spec(self, kind: str) -> dict[str, Any]:
        """What a source of that kind needs, with a fresh ticket where one is used up."""
        host = self.hosts[kind]
        ticket = {"ticket": host.tickets.pop()} if host.tickets else {}
        return {**host.spec, **ticket, "kind": kind}


@dataclass
class Bench:
    """The state of one measurement: rows by group and name, the points that our runs made."""

    options: Options
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def note(self, group: str, name: str, run: Run) -> None:
        """Adds a run to its row."""
        row = self.rows.setdefault((group, name), Row(name, mib=self.options.size / (1 << 20), group=group))
        row.seconds.append(round(run.seconds, 4))
        row.cpu_seconds.append(round(run.cpu, 3))
        row.out_mib, row.note = round(run.stored / (1 << 20), 1), run.note

    def of(self, group: str) -> list[Row]:
        """The rows of a group."""
        return [row for (each, _), row in self.rows.items() if each == group]


def run(options: Options) -> Result:
    """Every subject once a round, in turn; then one profiled run of the modes that the goals are about."""
    image, later = options.scratch / "disk.raw", options.scratch / "later.raw"
    disk.make(image, options.size)
    ranges = disk.change(image, later, CHANGED)
    hosts.certificates(options.scratch)
    bench = Bench(options)
    with contextlib.ExitStack() as stack:
        first, second = (_serve(stack, each, options.scratch / each.stem) for each in (image, later))
        for each in (image, later):
            _warm(each)
        for _ in range(options.rounds):
            _round(bench, first, second, ranges)
        stages = _profiles(options, first)
    compare(bench.of(FULL), [NBDCOPY, QEMU, BORG, RESTIC, ALONE])
    compare(bench.of(INCREMENTAL), [QEMU, BORG, RESTIC])
    compare(bench.of(RESTORE), [QEMU_RESTORE])
    return Result(list(bench.rows.values()), goals.of(bench.rows), stages)


def _serve(stack: contextlib.ExitStack, image: Path, folder: Path) -> Served:
    folder.mkdir()
    exported = stack.enter_context(hosts.export(image, folder, "nbd"))
    host = stack.enter_context(hosts.esxi(image))
    array = stack.enter_context(hosts.array(image, folder, image.stem))
    bus = stack.enter_context(hosts.bus(image, folder, exported))
    found = {"socket": exported, "nbd": host, "nbdssl": host, "san": array, "hotadd": bus}
    return Served(image, exported.spec["uri"], found)


def _warm(image: Path) -> None:
    """The source is in the page cache for everyone."""
    with image.open("rb") as file:
        while file.read(1 << 20):
            pass


def _round(bench: Bench, first: Served, second: Served, ranges: list[tuple[int, int]]) -> None:
    options = bench.options
    out = fresh(options.scratch / "out")
    size, uri = options.size, first.uri
    seen = fresh(options.scratch / "seen")  # the file-based tools see the disk here, before and after
    os.link(first.image, seen / "disk.raw")
    restic = peers.Restic(out)
    borgs = {name: peers.Borg(out, compression) for name, compression in ((BORG, "lz4"), (BORG_ZSTD, "zstd,1"))}
    tools: dict[str, Callable[[], Run]] = {
        NBDCOPY: lambda: peers.nbdcopy(uri, out, size),
        QEMU: lambda: peers.qemu(uri, out),
        QEMU_WIDE: lambda: peers.qemu(uri, out, "-m", "16", "-W"),
        RESTIC: lambda: restic.backup(seen),
        **{name: (lambda borg=borg: borg.backup(seen)) for name, borg in borgs.items()},  # type: ignore[misc]
        ALONE: lambda: peers.zstd_alone(first.image),
    }
    for name, tool in tools.items():
        bench.note(FULL, name, tool())
    points: dict[str, dict[str, Any]] = {}
    for kind, name in {"socket": SOCKET, **OURS}.items():
        folder = fresh(options.scratch / f"pair-{kind}")
        measured, points[kind] = backup(options, first, kind, folder)
        bench.note(FULL, name, measured)
    # The same disk later
    (seen / "disk.raw").unlink()
    os.link(second.image, seen / "disk.raw")
    bench.note(INCREMENTAL, QEMU, peers.qemu_rebase(second.image, first.image, out))
    bench.note(INCREMENTAL, RESTIC, restic.backup(seen))
    for name, borg in borgs.items():
        bench.note(INCREMENTAL, name, borg.backup(seen))
    for kind, name in {"socket": SOCKET, **OURS}.items():
        folder = options.scratch / f"pair-{kind}"
        measured, _ = backup(options, second, kind, folder, parent=points[kind]["point"], ranges=ranges)
        bench.note(INCREMENTAL, name, measured)
    # Out of the full
    point = Path(points["nbd"]["folder"])
    bench.note(RESTORE, QEMU_RESTORE, peers.qemu_restore(point / "disk-2000.qcow2", out))
    bench.note(RESTORE, LOCAL, _restore(options, point, out, "local"))
    bench.note(RESTORE, LINK, _restore(options, point, out, "link"))
    for name in ("local", "link"):
        subprocess.run(["cmp", str(first.image), str(out / name)], check=True, timeout=DEADLINE)


def backup(
    options: Options,
    served: Served,
    kind: str,
    folder: Path,
    *,
    parent: str | None = None,
    ranges: list[tuple[int, int]] | None = None,
    profile: bool = False,
) -> tuple[Run, dict[str, Any]]:
    """A backup by our two halves, as the engine's processes do it; the run, and what both halves said."""
    for file in options.scratch.glob("*.pem"):
        with contextlib.suppress(FileExistsError):
            (folder / file.name).symlink_to(file)
    host = served.hosts[kind]
    with _half("target", folder, {"size": options.size, "parent": parent, "profile": profile}) as target:
        ready = _line(target)
        spec = {
            **served.spec(kind),
            "port": ready["port"],
            "token": ready["token"],
            "ranges": ranges,
            "allocated": hosts.areas(served.image) if ranges is None and kind in BY_CBT else None,
            "profile": profile,
        }
        with _half("source", folder, spec) as source:
            _line(source)
            before = host.cpu()
            sent = _result(source, "go\n")
            received = _result(target)
            serving = host.cpu() - before
    if sent["root"] != received["root"]:
        raise RuntimeError("the two halves do not agree")
    note = f"{received['after_stream']:.2f} s after the stream; who serves the disk: {serving:.2f} CPU s"
    run = Run(received["end"] - sent["begin"], sent["cpu"] + received["cpu"], received["stored"], note)
    return run, {**received, "source": sent["stages"], "target": received["stages"]}


def _restore(options: Options, point: Path, out: Path, how: str) -> Run:
    folder, to = options.scratch, out / how
    if how == "local":
        with _half("local", folder, {"point": str(point), "to": str(to)}) as half:
            _line(half)
            done = _result(half, "go\n")
            return Run(done["end"] - done["begin"], done["cpu"], to.stat().st_blocks * 512)
    with _half("serve", folder, {"point": str(point)}) as serving:
        ready = _line(serving)
        spec = {**ready, "size": options.size, "to": str(to)}
        with _half("receive", folder, spec) as receiving:
            _line(receiving)
            done = _result(receiving, "go\n")
        served = _result(serving)
    return Run(done["end"] - done["begin"], done["cpu"] + served["cpu"], to.stat().st_blocks * 512)


def _profiles(options: Options, served: Served) -> list[Stage]:
    found = []
    for kind in MODES:
        folder = fresh(options.scratch / "pair-profile")
        _, said = backup(options, served, kind, folder, profile=True)
        for half in ("source", "target"):
            found += [Stage(OURS[kind], half, **stage) for stage in said[half]]
    return found


@contextlib.contextmanager
def _half(half: str, folder: Path, spec: dict[str, Any]) -> Any:
    command = [sys.executable, "-m", "bench.pair", half, str(folder), json.dumps(spec)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a half of the pair ended before its time")
    return dict(json.loads(line))


def _result(process: subprocess.Popen[str], say: str | None = None) -> dict[str, Any]:
    said = process.communicate(say, timeout=DEADLINE)[0]
    if process.returncode:
        raise RuntimeError("a half of the pair failed")
    return dict(json.loads(said))


def fresh(folder: Path) -> Path:
    """An empty folder there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
