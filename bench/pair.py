# SPDX-License-Identifier: MIT
"""The two halves of a backup in processes of their own, with the engine's own pipelines; only the source differs.

`python -m bench.pair target FOLDER SIZE` prints port and token, then the result. `python -m bench.pair source FOLDER nbd|nfc SPEC PORT
TOKEN` prints a line when its modules are loaded, waits for a line, runs, prints the result. Lines are JSON objects.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbd

from engine.dialer import Dialer
from engine.events import EventLog
from engine.modes.network import NetworkSession
from engine.modes.source import Extent, Read, Source
from engine.modes.ticket import Ticket
from engine.mover import datalink
from engine.mover.datalink import DataListener
from engine.mover.source_pipeline import SourcePipeline
from engine.mover.target_pipeline import TargetPipeline
from engine.mover.throttle import Throttle
from engine.rpc.identity import Identity


class NbdSource(Source):
    """A disk on a Unix socket, one connection a thread with sync reads (disks reference section 1)."""

    mode = "nbd socket"

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._local = threading.local()
        self.capacity = self._handle().get_size()

    def extents(self) -> list[Extent]:
        found: list[Extent] = []

        def take(context: str, offset: int, entries: list[int], error: Any) -> None:
            for length, flags in zip(entries[::2], entries[1::2], strict=True):
                if not flags & 1:
                    found.append((offset, min(length, self.capacity - offset)))
                offset += length

        offset = 0
        while offset < self.capacity:
            count = min(self.capacity - offset, 1 << 30)
            self._handle().block_status(count, offset, take)
            offset += count
        return found

    def start(self, offset: int, view: memoryview) -> Read:
        handle = self._handle()
        return _Pending(handle, offset, view)

    def close(self) -> None:
        self._local = threading.local()

    def _handle(self) -> Any:
        handle = getattr(self._local, "handle", None)
        if handle is None:
            handle = self._local.handle = nbd.NBD()
            handle.add_meta_context("base:allocation")
            handle.set_pread_initialize(False)
            handle.connect_uri(self._uri)
        return handle


class _Pending:
    def __init__(self, handle: Any, offset: int, view: memoryview) -> None:
        self._handle, self._offset, self._view = handle, offset, view

    def wait(self) -> None:
        self._view[:] = self._handle.pread(len(self._view), self._offset)


def identity(folder: Path, name: str) -> Identity:
    """Made by `bench.backup`."""
    return Identity(folder / f"{name}.pem", folder / "ca.pem")


def target(folder: Path, size: int) -> dict[str, Any]:
    """Receives the disk and commits it; the verification of the commit is timed apart."""
    listener = DataListener("127.0.0.1", (0, 0), identity(folder, "repository-1"))
    print(json.dumps({"port": listener.port, "token": listener.token}), flush=True)
    out = folder / "out"
    out.mkdir(exist_ok=True)

    def link() -> datalink.DataLink:
        return listener.accept(deadline=30, stop=threading.Event(), step="7", welcome={})[0]

    pipeline = TargetPipeline(out, "disk-2000.qcow2", size, link)
    pipeline.wait(600)
    begin = time.monotonic()
    stored = pipeline.commit(0)
    return {"stored": stored.stored, "commit": time.monotonic() - begin, "root": stored.root}


def source(folder: Path, kind: str, spec: str, port: int, token: str) -> dict[str, Any]:
    """Sends the disk, once a line came on standard input."""
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()
    dialer = Dialer(EventLog(None, host="proxy-1", process="bench"))
    disk: Source
    if kind == "nbd":
        disk = NbdSource(spec)
    else:
        host = json.loads(spec)
        ticket = Ticket(host["address"], host["port"], host["thumbprint_sha1"], "vpxa-nfc", host["ticket"])
        disk = NetworkSession.connect(dialer, ticket, host["mode"]).open_disk(host["path"], host["size"])
    connection = dialer.connect("127.0.0.1", port, step="7", name="repository-1")
    link, _ = datalink.connect(connection, identity(folder, "proxy-1"), expect="repository-1", token=token, step="7")
    with disk, link:
        return SourcePipeline(disk, link, throttle=Throttle(None), workers=3).run()


def main(argv: list[str]) -> int:
    """One half."""
    role, folder, *rest = argv
    result = (
        target(Path(folder), int(rest[0]))
        if role == "target"
        else source(Path(folder), rest[0], rest[1], int(rest[2]), rest[3])
    )
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
