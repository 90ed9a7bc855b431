# SPDX-License-Identifier: MIT
"""An array as a process on a loopback address of its own, and foreign initiators."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.core.fabric import FabricClient
from fakes.san.options import IQN
from fakes.san.tgt import PATH
from tests.fakes.storage.conftest import ROOT, first_line

NAA = "naa.6123456789abcdef0123456789abcdef"
SECRET = "twelve-and-more"


def loopback() -> str:
    """An address that no other test uses."""
    rng = random.Random(os.urandom(8))
    return f"127.{rng.randrange(1, 255)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"


class SanProcess:
    """A running array for one LUN file."""

    def __init__(self, home: Path, lun: Path, *more: str) -> None:
        self.home = home
        self.address = loopback()
        self.fabric = home / "fabric"
        self.fabric.mkdir(exist_ok=True)
        self.command = [sys.executable, "-m", "fakes.san", "--listen", self.address, "--lun", str(lun), "--naa", NAA]
        self.command += ["--name", "datastore1", "--state", str(home / "san"), "--fabric", str(self.fabric), *more]
        self.process: subprocess.Popen[bytes] | None = None
        self.ready: dict[str, Any] = {}
        self.client = FabricClient(self.fabric / "san-datastore1.sock")

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.ready = json.loads(first_line(self.process, 40.0))

    def call(self, method: str, **params: Any) -> Any:
        return self.client.call(method, **params)

    def url(self, user: str = "", secret: str = "") -> str:
        who = f"{user}%{secret}@" if user else ""
        return f"iscsi://{who}{self.address}:3260/{IQN}/1"

    def tgtd(self) -> list[int]:
        """The pids of our child processes."""
        assert self.process
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(each) for each in children.split()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process
        self.client.close()
        self.process.send_signal(number)
        try:
            code = self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe:
                    pipe.close()
            self.process = None
        return code


class Reader:
    """qemu-io with the LUN open: one iSCSI session that lasts."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            ["qemu-io", "-r", "-f", "raw", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read(self, offset: int) -> bool:
        """Reads 4 KiB there; False if that failed."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"read {offset} 4096\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if "read 4096/4096" in line:
                return True
            if "read failed" in line or "open device" in line:
                return False
        return False

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def initiator(*command: str, chap: tuple[str, str] | None = None, seconds: float = 30.0) -> tuple[int, str]:
    """Runs an initiator, with `chap` as its user and secret; gives its exit code and what it said."""
    environment = {"PATH": PATH}
    if chap:
        environment |= {"LIBISCSI_CHAP_USERNAME": chap[0], "LIBISCSI_CHAP_PASSWORD": chap[1]}
    run = subprocess.run(
        command, capture_output=True, timeout=seconds, check=False, env=environment, stdin=subprocess.DEVNULL
    )
    return run.returncode, (run.stdout + run.stderr).decode(errors="replace")


@pytest.fixture
def lun(tmp_path: Path) -> Path:
    """A LUN's file, 8 MiB, nothing but noise."""
    path = tmp_path / "lun, with a comma.img"
    path.write_bytes(random.Random(1).randbytes(8 << 20))
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., SanProcess]]:
    """Starts arrays, each ended with the test."""
    if os.geteuid() != 0:
        pytest.skip("tgtd needs root, or to be root of a user namespace")
    for name in ("tgtd", "iscsi-ls", "qemu-io"):
        if shutil.which(name, path=PATH) is None:
            pytest.skip(f"{name} is missing: apt-get install tgt libiscsi-bin qemu-utils qemu-block-extra")
    running: list[SanProcess] = []

    def begin(lun: Path, *more: str) -> SanProcess:
        home = tmp_path / f"array{len(running)}"
        home.mkdir()
        made = SanProcess(home, lun, *more)
        running.append(made)
        made.start()
        return made

    yield begin
    for each in running:
        if each.process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.stop()
