# SPDX-License-Identifier: MIT
"""The same comparison through a whole lab: real jobs over router, firewall, capture, NFC or iSCSI, and the TLS link of the movers.

The time of a job that is compared begins when the proxy opens the disk (step 20) and ends when the restore point is visible:
everything is synced and verified then. What comes before and after is printed as stages, and the whole run beside it. CPU seconds
are those of the whole lab for the whole run, start of the processes included; by daemon they are stages too.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

from bench import backup, disk, goals, hosts, peers, site
from bench.backup import BORG, BORG_ZSTD, FULL, INCREMENTAL, LINK, MODES, OURS, QEMU, QEMU_RESTORE, RESTIC, RESTORE
from bench.peers import DEADLINE, Run
from bench.rows import Options, Result, Stage, compare
from bench.site import KEY, Ran, Site

TITLE = "backup jobs through the lab"
TOOLS = peers.TOOLS
READS = {"nbd": "20c", "nbdssl": "20c", "san": "20a", "hotadd": "20b"}


def run(options: Options) -> Result:
    """Every subject once a round, in turn, on the disk as the round before left it."""
    bench = backup.Bench(options)
    image = options.scratch / "disk-0.raw"
    disk.make(image, options.size)
    parts: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    with site.running(options.scratch / "home", options.size) as lab:
        lab.write(image, hosts.areas(image))
        for number in range(options.rounds):
            later = options.scratch / f"disk-{number + 1}.raw"
            ranges = disk.change(image, later, backup.CHANGED, seed=2 + number)
            _round(bench, lab, image, later, ranges, parts)
            image.unlink()
            image = later
    compare(bench.of(FULL), [backup.NBDCOPY, QEMU, BORG, RESTIC, backup.ALONE])
    compare(bench.of(INCREMENTAL), [QEMU, BORG, RESTIC])
    compare(bench.of(RESTORE), [QEMU_RESTORE])
    return Result(list(bench.rows.values()), goals.of(bench.rows), _stages(parts))


def _round(
    bench: backup.Bench,
    lab: Site,
    image: Path,
    later: Path,
    ranges: list[tuple[int, int]],
    parts: dict[tuple[str, str, str], list[tuple[float, float]]],
) -> None:
    options = bench.options
    out = backup.fresh(options.scratch / "out")
    seen = backup.fresh(options.scratch / "seen")
    shutil.copyfile(image, seen / "disk.raw")
    restic = peers.Restic(out)
    borgs = {name: peers.Borg(out, compression) for name, compression in ((BORG, "lz4"), (BORG_ZSTD, "zstd,1"))}

    def note(group: str, mode: str, ran: Ran) -> str:
        point = str(ran.document["restore_points"][0]["point"])
        seconds = ran.visible() - ran.at(READS[mode], "begin")
        stored = ran.document["restore_points"][0]["disks"][0]["stored"]
        bench.note(group, OURS[mode], Run(seconds, sum(ran.cpu.values()), stored, _whole(ran)))
        for stage, value in _parts(ran, mode).items():
            parts.setdefault((OURS[mode], group, stage), []).append(value)
        return point

    with contextlib.ExitStack() as stack:
        exported = stack.enter_context(hosts.export(seen / "disk.raw", out, "nbd"))
        uri = exported.spec["uri"]
        tools: dict[str, Callable[[], Run]] = {
            backup.NBDCOPY: lambda: peers.nbdcopy(uri, out, options.size),
            QEMU: lambda: peers.qemu(uri, out),
            RESTIC: lambda: restic.backup(seen),
            BORG: lambda: borgs[BORG].backup(seen),
            BORG_ZSTD: lambda: borgs[BORG_ZSTD].backup(seen),
            backup.ALONE: lambda: peers.zstd_alone(image),
        }
        points = {}
        for mode, (name, tool) in _alternate(tools):
            bench.note(FULL, name, tool())
            if mode is not None:
                points[mode] = note(FULL, mode, lab.job(mode, "--full"))
    shutil.copyfile(later, seen / "disk.raw")
    lab.write(later, ranges)
    changed: dict[str, Callable[[], Run]] = {
        QEMU: lambda: peers.qemu_rebase(later, image, out),
        RESTIC: lambda: restic.backup(seen),
        BORG: lambda: borgs[BORG].backup(seen),
        BORG_ZSTD: lambda: borgs[BORG_ZSTD].backup(seen),
    }
    for mode, (name, tool) in _alternate(changed):
        bench.note(INCREMENTAL, name, tool())
        if mode is not None:
            note(INCREMENTAL, mode, lab.job(mode))
    folder = lab.point(points["nbd"])
    bench.note(RESTORE, QEMU_RESTORE, peers.qemu_restore(folder / f"disk-{KEY}.qcow2", out))
    ran = lab.restore(points["nbd"], out / "restored")
    seconds = ran.at("r3", "end") - ran.at("r3", "begin")
    bench.note(
        RESTORE, LINK, Run(seconds, sum(ran.cpu.values()), (out / "restored").stat().st_blocks * 512, _whole(ran))
    )
    subprocess.run(["cmp", str(image), str(out / "restored")], check=True, timeout=DEADLINE)


def _alternate(tools: dict[str, Callable[[], Run]]) -> list[tuple[str | None, tuple[str, Callable[[], Run]]]]:
    """Tools and modes in turn, so that a busy moment of the machine meets both."""
    modes: list[str | None] = [*MODES, *[None] * len(tools)]
    return list(zip(modes, tools.items(), strict=False))


def _whole(ran: Ran) -> str:
    begin, end = ran.span()
    return f"the whole run: {end - begin:.1f} s"


def _parts(ran: Ran, mode: str) -> dict[str, tuple[float, float]]:
    """Where the time of a job goes by its steps, and CPU seconds by daemon."""
    step = READS[mode]
    begin, end = ran.span()
    marks = {
        "1-17: start, movers, vCenter, snapshot": (begin, ran.at("17", "end")),
        "18, 19: ticket, connection": (ran.at("17", "end"), ran.at(step, "begin")),
        "20, 21: read, pack, send, write": (ran.at(step, "begin"), ran.at(step, "end")),
        "21: rest of the verification, sync, visible": (ran.at(step, "end"), ran.visible()),
        "movers end, disk detached": (ran.visible(), ran.at("22", "begin")),
        "22: snapshot committed, and the end": (ran.at("22", "begin"), end),
    }
    found = {name: (end - begin, 0.0) for name, (begin, end) in marks.items()}
    return found | {f"CPU: {name}": (0.0, seconds) for name, seconds in ran.cpu.items() if seconds >= 0.02}


def _stages(parts: dict[tuple[str, str, str], list[tuple[float, float]]]) -> list[Stage]:
    """Medians of the rounds."""
    return [
        Stage(
            subject,
            group,
            stage,
            statistics.median(wall for wall, _ in values),
            statistics.median(cpu for _, cpu in values),
            len(values),
        )
        for (subject, group, stage), values in parts.items()
    ]
