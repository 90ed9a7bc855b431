# SPDX-License-Identifier: MIT
"""Real labs for tests (hosts, links and firewall; no daemons unless a test starts some), and proof that nothing stays."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lab.realise import folders, kernel, lifecycle, outside, probe, rtnetlink
from lab.realise.control import ControlClient
from lab.realise.folders import LabFolder
from lab.realise.launch import Launch
from lab.topology import find

ROOT = os.geteuid() == 0
DEADLINE = 10.0
LAUNCH = Launch(topology=find(None), world=False)
HOSTS = 13


@functools.cache
def why_no_lab() -> str | None:
    """Why this machine can hold no lab, or None."""
    return probe._in_lab(probe._make_network)


needs_lab = pytest.mark.skipif(why_no_lab() is not None, reason=f"no lab is possible here: {why_no_lab()}")


def eventually(what: Callable[[], bool], message: str, deadline: float = DEADLINE) -> None:
    """Polls until `what` holds; fails the test with `message` after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not what():
        assert time.monotonic() < end, message
        time.sleep(0.005)


@contextmanager
def running(home: Path, name: str = "test", launch: Launch = LAUNCH) -> Iterator[LabFolder]:
    """A lab that is up inside the block and gone afterwards, whatever happened to it."""
    lab = folders.folder(name, home)
    begun = time.monotonic()
    lifecycle.up(lab, launch)
    up = time.monotonic()
    try:
        yield lab
    finally:
        down = time.monotonic()
        if lab.running():
            lifecycle.down(lab)
        print(f"lab {name}: up {up - begun:.3f} s, down {time.monotonic() - down:.3f} s", file=sys.stderr)


def run(lab: LabFolder, host: str, *argv: str, stdin: bytes = b"", timeout: float = 20.0) -> tuple[int, bytes, bytes]:
    """Runs a command on a host: exit code, output, errors."""
    streams = []
    for data in (stdin, b"", b""):
        fd = os.memfd_create("stream")
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        streams.append(fd)
    try:
        with ControlClient(lab.control_socket) as client:
            code = client.call("exec", host=host, argv=list(argv), fds=streams, timeout=timeout)["code"]
        return code, os.pread(streams[1], 1 << 20, 0), os.pread(streams[2], 1 << 20, 0)
    finally:
        for fd in streams:
            os.close(fd)


class Remains:
    """What a lab consists of on this machine, noted while it runs, to be looked for afterwards."""

    def __init__(self, lab: LabFolder) -> None:
        state = lab.state()
        self.lab = lab
        self.known = [state[who] for who in ("launcher", "supervisor", "caretaker")]
        self._pid_namespace = Path(f"/proc/{self.pid('supervisor')}/ns/pid").readlink()
        assert self._pid_namespace != Path("/proc/self/ns/pid").readlink()
        self._anchor = _Anchor(self.pid("supervisor")) if ROOT else None

    def pid(self, who: str) -> int:
        """Pid, seen from here, of launcher, supervisor or caretaker."""
        return int(self.lab.state()[who]["pid"])

    def outer_pid(self, inner: int) -> int:
        """Pid, seen from here, of the lab's process `inner`."""
        for pid in self.processes():
            status = Path(f"/proc/{pid}/status").read_text()
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if int(numbers[-1]) == inner:
                return pid
        raise AssertionError(f"no process {inner} in the lab")

    def processes(self) -> list[int]:
        """Pids, seen from here, of the lab's processes; zombies that wait for this machine's init do not count."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if (entry / "ns/pid").readlink() == self._pid_namespace and outside.running(int(entry.name)):
                        found.append(int(entry.name))
        return found

    def assert_gone(self) -> None:
        """No process, network namespace, link, mount, named namespace or loop device of the lab is left."""
        eventually(lambda: not self.processes(), "processes of the lab are left")
        eventually(lambda: not any(lifecycle._alive(known) for known in self.known), "launcher or caretaker is left")
        if self._anchor is not None:
            eventually(
                self._anchor.alone, "network namespaces of the lab are left", 3 * DEADLINE
            )  # the kernel's own pace
            self._anchor.close()
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(self.lab.path) not in mounts
        assert "/run/vadplab" not in mounts
        names = {path.name for path in Path("/run/netns").glob("*")}
        assert not names & {"console", "backup-server", "isolated-guest", "router"}
        backing = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
        assert not [file for file in backing if str(self.lab.path) in file]
        assert not self.lab.running()


class _Anchor:
    """A namespace of the test's own with one link into every namespace of the lab: a link goes when its namespace does."""

    def __init__(self, supervisor: int) -> None:
        home = kernel.current_netns()
        try:
            kernel.unshare(kernel.CLONE_NEWNET)
            self._route = rtnetlink.Netlink()
            own = kernel.current_netns()
            spaces = sorted(Path(f"/proc/{supervisor}/root/run/netns").iterdir())
            fds = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in spaces]
            self._route.apply([rtnetlink.veth(f"a{i}", 500 + i, own, "anchor", 900, fd) for i, fd in enumerate(fds)])
            for fd in (own, *fds):
                os.close(fd)
        finally:
            kernel.setns(home)
            os.close(home)
        assert self.count() == len(fds) >= HOSTS

    def count(self) -> int:
        """How many namespaces of the lab are alive in the kernel."""
        return sum(1 for index in self._route.links() if index >= 500)

    def alone(self) -> bool:
        """Whether none is."""
        return self.count() == 0

    def close(self) -> None:
        self._route.close()
