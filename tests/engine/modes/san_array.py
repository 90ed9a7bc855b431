# SPDX-License-Identifier: MIT
"""A real tgtd that serves a LUN, set up as the lab does it; skipped, with the reason, where there is none."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.dialer import Dialer
from engine.events import EventLog
from engine.modes import san
from engine.modes.iscsi.session import Login
from engine.modes.layout import Layout
from fakes.core.fabric import FabricClient
from tests.engine.modes.site import free_port

NAA = "600112233445566778899aabbccddee1"
USER, SECRET = "proxy", "a-secret-of-the-SAN"
GRAIN = 65536
LOGIN = Login("iqn.2026-01.lab.vadplab:proxy-1", USER, SECRET)


def lun_of(content: bytes) -> tuple[bytes, Layout]:
    """A LUN that holds the disk `content` in grains at random places (grains of zeros nowhere), and the disk's layout."""
    rng = random.Random(5)
    count = -(-len(content) // GRAIN)
    places = list(range(2 * count + 1))
    rng.shuffle(places)
    lun = bytearray(rng.randbytes(len(places) * GRAIN))
    areas = []
    for grain in range(count):
        piece = content[grain * GRAIN : (grain + 1) * GRAIN]
        if any(piece):
            where = places[grain] * GRAIN
            lun[where : where + len(piece)] = piece
            areas.append((grain * GRAIN, len(piece), where))
    return bytes(lun), Layout(NAA, len(content), tuple(areas))


@dataclass
class Served:
    """The running array."""

    folder: Path
    layout: Layout
    port: int
    process: subprocess.Popen[str]

    @property
    def events(self) -> Path:
        """Where the dialer's events go."""
        return self.folder / "events.jsonl"

    def dialer(self) -> Dialer:
        """The proxy's dialer."""
        return Dialer(EventLog(self.events, host="proxy-1", process="test"), {"san": "127.0.0.1"}, timeout=2.0)

    def open(self, login: Login = LOGIN, layout: Layout | None = None, patience: float = 10.0) -> san.SanSource:
        """Opens the disk."""
        portals = san.Portals((("san", self.port),), login)
        return san.open_source(
            self.dialer(), portals, layout or self.layout, [f"naa.{(layout or self.layout).naa}"], patience=patience
        )

    def manage(self, method: str, **params: object) -> object:
        """Asks the array's management."""
        return FabricClient(self.folder / "san-ds1.sock", timeout=20).call(method, **params)

    def daemon(self) -> int:
        """The pid of tgtd."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (found,) = (int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "tgtd")
        return found


@contextlib.contextmanager
def array(folder: Path, lun: bytes, layout: Layout) -> Iterator[Served]:
    """Serves `lun` while the context lasts."""
    if shutil.which("tgtd", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("tgtd is not installed (apt-get install tgt)")
    (folder / "lun").write_bytes(lun)
    (folder / "secret").write_text(f"{SECRET}\n")
    port = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "fakes.san", "--listen", f"127.0.0.1:{port}", "--lun", str(folder / "lun"), "--naa",
                f"naa.{NAA}", "--name", "ds1", "--chap", USER, "--chap-password-file", str(folder / "secret"),
                "--state", str(folder / "state"), "--fabric", str(folder),
            ],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            text = (folder / "log").read_text().strip()
            if process.wait(10) == 3:
                pytest.skip(text)
            raise AssertionError(text)
        yield Served(folder, layout, port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
