# SPDX-License-Identifier: MIT
"""A storage service as a process, and clients of it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from fakes.core.fabric import FabricClient

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
BIOS = "564d4e6f-1a2b-4c3d-8e4f-5a6b7c8d9e0f"


def first_line(process: subprocess.Popen[bytes], seconds: float = 20.0) -> str:
    """The line by which a process says that it is ready."""
    assert process.stdout
    data = b""
    deadline = time.monotonic() + seconds
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        piece = os.read(process.stdout.fileno(), 1) if ready else b""
        if not piece:
            process.kill()
            raise AssertionError(f"no ready line: {data!r} {process.stderr.read().decode() if process.stderr else ''}")
        data += piece
    return data.decode().rstrip("\n")


class StorageProcess:
    """A running service over `home`; `kill` and `start` again at will."""

    def __init__(self, home: Path, capacity: str = "256MiB") -> None:
        self.home = home
        self.state = home / "state"
        self.fabric = home / "fabric"
        self.fabric.mkdir(exist_ok=True)
        self.capacity = capacity
        self.process: subprocess.Popen[bytes] | None = None
        self.ready: dict[str, Any] = {}
        self.client = FabricClient(self.fabric / "storage-datastore1.sock")

    def start(self) -> None:
        command = [sys.executable, "-m", "fakes.storage", "--name", "datastore1", "--state", str(self.state)]
        command += ["--fabric", str(self.fabric), "--capacity", self.capacity]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.ready = json.loads(first_line(self.process))

    def call(self, method: str, **params: Any) -> Any:
        return self.client.call(method, **params)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process
        self.client.close()
        self.process.send_signal(number)
        code = self.process.wait(20)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
        self.process = None
        return code

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.fabric}/nbd-datastore1.sock"

    def connect(self, export: str) -> Any:
        handle = nbd.NBD()
        handle.add_meta_context("base:allocation")
        handle.set_export_name(export)
        with contextlib.suppress(AttributeError):
            handle.set_request_block_size(False)
        handle.connect_unix(str(self.fabric / "nbd-datastore1.sock"))
        return handle

    def make_vm(
        self, name: str = "web", sizes: tuple[int, ...] = (16 * MIB,), contents: str = "empty"
    ) -> dict[str, Any]:
        disks = [
            {
                "key": 2000 + number,
                "label": f"Hard disk {number + 1}",
                "size": size,
                "file": f"{name}/{name}.vmdk" if number == 0 else f"{name}/{name}_{number}.vmdk",
                "contents": contents,
            }
            for number, size in enumerate(sizes)
        ]
        made: dict[str, Any] = self.call("vm.create", vm=name, uuid=BIOS, disks=disks, files={})
        return made


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of fsyncs then cost nothing."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < 1 << 30:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="storage-test-", dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., StorageProcess]]:
    """Starts services, each ended with the test."""
    running: list[StorageProcess] = []

    def begin(capacity: str = "256MiB") -> StorageProcess:
        home = tmp_path / f"storage{len(running)}"
        home.mkdir()
        made = StorageProcess(home, capacity)
        running.append(made)
        made.start()
        return made

    yield begin
    for each in running:
        if each.process:
            each.stop()


@pytest.fixture
def storage(start: Callable[..., StorageProcess]) -> StorageProcess:
    return start()
