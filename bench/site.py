# SPDX-License-Identifier: MIT
"""A lab with one VM of one disk, for measuring: brought up by `vadplab up`, filled past the engine, asked over the command line.

Everything of a real job is in the way: router, firewall, capture, vCenter, NFC on 902, the array on 3260, the TLS link between
movers. Times are the engine's own marks of its steps; CPU seconds are those of each daemon with all its children, by /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbd
import yaml

from lab.realise import folders, lifecycle
from lab.topology import find

NAME, VM, KEY = "bench", "bench-vm", 2000
MODES = ("nbd", "nbdssl", "san", "hotadd")
DEADLINE = 600.0
PIECE = 1 << 20
_TICK = os.sysconf("SC_CLK_TCK")

Document = dict[str, Any]


def topology(folder: Path, size: int) -> Path:
    """The shipped lab with one powered-off VM of one empty disk, and a job for each mode."""
    plan = yaml.safe_load(find(None).read_text())
    proxy = [vm for vm in plan["vsphere"]["vms"] if vm.get("guest") == "proxy-2"]
    disk = {"size": f"{size >> 20}MiB", "contents": "empty"}
    measured = {"name": VM, "host": "esxi-1", "datastore": "datastore1", "power": "off", "disks": [disk]}
    plan["vsphere"]["vms"] = [measured, *proxy]
    del plan["hosts"]["linux-guest"]
    plan["backup"]["credentials"] = []
    plan["backup"]["jobs"] = [{"name": mode, "vms": [VM], "mode": mode} for mode in MODES]
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


@dataclass(frozen=True)
class Ran:
    """A run: its document, its events in order, and CPU seconds by daemon (with its children) while it lasted."""

    document: Document
    events: list[Document]
    cpu: dict[str, float]

    def at(self, step: str, phase: str) -> float:
        """When a step began or ended."""
        found = [e for e in self.events if (e["kind"], e["step"], e.get("phase")) == ("step", step, phase)]
        if not found:
            raise RuntimeError(f"step {step} did not {phase}")
        return seconds(found[0 if phase == "begin" else -1])

    def visible(self) -> float:
        """When the restore point was visible: letting go of the movers' control connections is what follows that."""
        return min(seconds(e) for e in self.events if (e["kind"], e["step"]) == ("bytes", "6"))

    def span(self) -> tuple[float, float]:
        """The first and the last event of the run."""
        times = [seconds(event) for event in self.events]
        return min(times), max(times)


def seconds(event: Document) -> float:
    """When an event was written, in seconds of the clock that all processes share."""
    return float(event["mono"]) / 1e9


class Site:
    """The running lab."""

    def __init__(self, home: Path) -> None:
        self.folder = folders.folder(NAME, home)
        self._home = home

    def write(self, image: Path, ranges: list[tuple[int, int]]) -> None:
        """What `image` holds in these ranges is written to the VM's disk, as its guest would."""
        handle = nbd.NBD()
        handle.set_export_name(f"live/{VM}/{KEY}")
        handle.connect_unix(str(self._outside("/run/vadplab/fabric/nbd-datastore1.sock")))
        with image.open("rb") as file:
            for begin, length in ranges:
                for at in range(begin, begin + length, PIECE):
                    file.seek(at)
                    handle.pwrite(file.read(min(PIECE, begin + length - at)), at)
        handle.flush()
        handle.shutdown()

    def job(self, mode: str, *options: str) -> Ran:
        """Runs the job of a mode; it must succeed in that mode, with evidence that agrees."""
        ran = self._run("job", "run", mode, *options)
        (task,) = ran.document["vms"][0]["tasks"]
        if ran.document["evidence"] != "consistent" or task["mode"] != mode:
            raise RuntimeError(f"{mode}: read by {task['mode']}, evidence {ran.document['evidence']}")
        return ran

    def restore(self, point: str, to: Path) -> Ran:
        """Restores the disk of a point to a file of the console."""
        return self._run("restore", "disk", point, "--disk", "1", "--to", str(to))

    def point(self, point: str) -> Path:
        """The folder of a restore point."""
        return Path(next(p["folder"] for p in self.command("points")["points"] if p["point"] == point))

    def command(self, *argv: str) -> Document:
        """`vadplab ARGV… --json`, which must end well."""
        program = str(Path(sys.executable).with_name("vadplab"))
        env = {**os.environ, "VADPLAB_HOME": str(self._home)}
        done = subprocess.run(
            [program, "--lab", NAME, *argv, "--json"],
            env=env,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"vadplab {' '.join(argv)}: {done.stdout[-500:]} {done.stderr[-500:]}")
        return dict(json.loads(done.stdout))

    def _run(self, *argv: str) -> Ran:
        before = self._cpu()
        document = self.command(*argv)
        after = self._cpu()
        events = (self.folder.runs / document["run"] / "events.jsonl").read_text().splitlines()
        used = {name: round(seconds - before.get(name, 0.0), 2) for name, seconds in after.items()}
        return Ran(document, [json.loads(line) for line in events], used)

    def _outside(self, inside: str) -> Path:
        return Path(f"/proc/{self.folder.state()['supervisor']['pid']}/root") / inside.lstrip("/")

    def _cpu(self) -> dict[str, float]:
        status = self.command("status")
        daemons = {one["name"]: one["pid"] for one in status["fabric"]}
        daemons |= {
            f"{host['name']}: {one['name']}": one["pid"] for host in status["hosts"] for one in host["processes"]
        }
        proc = self._outside("/proc")
        ours = set(daemons.values())
        found = {name: _tree(proc, pid, ours - {pid}) for name, pid in daemons.items()}
        return {**found, "router, capture, supervisor": _tree(proc, 1, ours)}


def _tree(proc: Path, pid: int, others: set[int]) -> float:
    """CPU seconds of a process and its living children, each with the children that it has reaped; not of `others`."""
    try:
        words = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        children = " ".join(each.read_text() for each in (proc / str(pid) / "task").glob("*/children"))
    except OSError:
        return 0.0  # it has ended
    own = sum(int(word) for word in words[11:15]) / _TICK
    return own + sum(_tree(proc, child, others) for child in map(int, children.split()) if child not in others)


@contextlib.contextmanager
def running(home: Path, size: int) -> Iterator[Site]:
    """The lab, up inside the block and gone afterwards."""
    site = Site(home)
    home.mkdir(parents=True)
    try:
        site.command("up", "--topology", str(topology(home, size)))
        yield site
        site.command("down", "--purge")
    finally:
        if site.folder.running():
            lifecycle.down(site.folder, force=True)
