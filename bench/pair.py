# SPDX-License-Identifier: MIT
"""The two halves of a backup or a restore in processes of their own, with the engine's own pipelines.

`python -m bench.pair HALF FOLDER JSON`: `target` and `source` are a backup into a restore point, `serve` and `receive` a restore
over the link, `local` a restore on the repository itself. Each prints a line when its modules are loaded; `source`, `receive`
and `local` wait for a line then. The last line is the result: `begin` or `end` (the clock all processes share) and CPU seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.profile import Profile, of_source, of_target
from bench.sources import open_source
from engine.console.receive import receive_disk
from engine.dialer import Connection, Dialer
from engine.events import EventLog
from engine.mover import datalink
from engine.mover.datalink import DataListener
from engine.mover.reader_pipeline import send_disk
from engine.mover.source_pipeline import SourcePipeline
from engine.mover.target_pipeline import TargetPipeline
from engine.mover.throttle import Throttle
from engine.rpc.identity import Identity
from engine.store.point_disk import PointDisk
from engine.store.points import Points, new_point_id
from engine.store.restore import to_file

JOB, VM, KEY, FILE = "bench", "vm", 2000, "disk-2000.qcow2"
DEADLINE = 600.0
WORKERS = 2
"""As jobs have it unless they are edited."""
PROXY, REPOSITORY = "proxy-1", "repository-1"


def identity(folder: Path, name: str) -> Identity:
    """Made by `bench.hosts.certificates`."""
    return Identity(folder / f"{name}.pem", folder / "ca.pem")


def say(document: dict[str, Any]) -> None:
    """One line for the measuring process."""
    print(json.dumps(document), flush=True)


def target(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Receives a disk of `size` bytes into a new restore point, on `parent` when it names one; it ends when that is visible."""
    listener = DataListener("127.0.0.1", (0, 0), identity(folder, REPOSITORY))
    points = Points(folder / "repository")
    (folder / "repository").mkdir(exist_ok=True)
    point, parent = new_point_id(), spec.get("parent")
    say({"port": listener.port, "token": listener.token})
    cpu = time.process_time()
    kind: Any = "incremental" if parent else "full"
    at = points.begin(JOB, VM, point, kind=kind, parent=parent)
    below = PointDisk(at.parent / parent, KEY) if parent else None

    def link() -> datalink.DataLink:
        return listener.accept(deadline=30, stop=threading.Event(), step="7", welcome={})[0]

    profile = Profile()
    with of_target(profile) if spec.get("profile") else contextlib.nullcontext():
        pipeline = TargetPipeline(at, FILE, spec["size"], link, parent=below)
        pipeline.wait(DEADLINE)
        streamed = time.monotonic()
        stored = pipeline.commit(0)
    pipeline.disk.close()
    names = ("file", "stored", "digests", "root", "blocks", "blocks_root", "parent_root", "changed", "allocated")
    disk = {name: getattr(stored, name) for name in names}
    disk |= {"key": KEY, "label": "Hard disk 1", "path": "[datastore1] vm1/vm1.vmdk", "capacity": stored.size}
    manifest = {
        "schema": "vadplab.point/2", "job": JOB, "vm": {"name": VM, "uuid": "-"}, "point": point, "kind": kind,
        "parent": parent, "created": datetime.now(UTC).isoformat(), "consistency": "crash", "session": "bench",
        "snapshot": {"moref": "snapshot-1", "name": "bench"}, "vmx": "", "disks": [disk],
    }  # fmt: skip
    final = points.commit(JOB, VM, point, manifest)
    end = time.monotonic()
    used = sum(path.stat().st_blocks * 512 for path in final.iterdir())
    return {
        "end": end, "cpu": time.process_time() - cpu, "after_stream": end - streamed, "root": pipeline.root, "stored": used,
        "point": point, "folder": str(final), "stages": profile.to_list(),
    }  # fmt: skip


def source(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Opens the disk that `spec` names and sends it, or its `ranges`, once a line came on standard input."""
    say({"ready": True})
    sys.stdin.readline()
    begin, cpu = time.monotonic(), time.process_time()
    dialer = Dialer(EventLog(None, host=PROXY, process="bench"))
    link = _connect(folder, dialer, spec, "7")
    profile = Profile()
    with open_source(dialer, spec) as disk, link:
        profiled = of_source(profile, disk) if spec.get("profile") else contextlib.nullcontext(disk)
        with profiled:
            ranges = spec.get("ranges") or spec.get("allocated")
            pipeline = SourcePipeline(
                disk,
                link,
                throttle=Throttle(None),
                workers=WORKERS,
                ranges=ranges,
                incremental=bool(spec.get("ranges")),
            )
            sent = pipeline.run()
    return {**sent, "begin": begin, "cpu": time.process_time() - cpu, "stages": profile.to_list()}


def serve(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """The repository's half of a restore of the point in folder `point`."""
    listener = DataListener("127.0.0.1", (0, 0), identity(folder, REPOSITORY))
    with PointDisk(Path(spec["point"]), KEY) as disk:
        say({"port": listener.port, "token": listener.token})
        cpu = time.process_time()
        link = listener.accept(deadline=30, stop=threading.Event(), step="r3", welcome={"size": disk.size})[0]
        sent = send_disk(disk, link)
    return {**sent, "cpu": time.process_time() - cpu}


def receive(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """The console's half of a restore, to the file `to`."""
    say({"ready": True})
    sys.stdin.readline()
    begin, cpu = time.monotonic(), time.process_time()
    dialer = Dialer(EventLog(None, host=PROXY, process="bench"))
    connection: Connection = dialer.connect("127.0.0.1", spec["port"], step="r3", name=REPOSITORY)
    work = receive_disk(
        connection, identity(folder, PROXY), spec["token"], spec["size"], Path(spec["to"]), expect=REPOSITORY
    )
    asyncio.run(work)
    return {"begin": begin, "end": time.monotonic(), "cpu": time.process_time() - cpu}


def local(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """A restore of the point in folder `point` to the file `to`, on the repository itself."""
    say({"ready": True})
    sys.stdin.readline()
    begin, cpu = time.monotonic(), time.process_time()
    with PointDisk(Path(spec["point"]), KEY) as disk:
        to_file(disk, Path(spec["to"]))
    return {"begin": begin, "end": time.monotonic(), "cpu": time.process_time() - cpu}


def _connect(folder: Path, dialer: Dialer, spec: dict[str, Any], step: str) -> datalink.DataLink:
    connection = dialer.connect("127.0.0.1", spec["port"], step=step, name=REPOSITORY)
    return datalink.connect(
        connection, identity(folder, PROXY), expect=REPOSITORY, token=spec["token"], step=step
    )[0]  # fmt: skip


HALVES = {"target": target, "source": source, "serve": serve, "receive": receive, "local": local}


def main(argv: list[str]) -> int:
    """One half."""
    half, folder, spec = argv
    say(HALVES[half](Path(folder), json.loads(spec)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
