# SPDX-License-Identifier: MIT
"""A guest with real storage in namespaces of its own, for tests that run as root."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh

from fakes.core.fabric import FabricClient
from fakes.linux_guest import loop

ADDRESS = "10.9.0.10"
PASSWORD = "Guest-Test-1"
SIZE = 96 << 20
_CLONE_NEWNET = 0x40000000


def eventually(what: Callable[[], Any], deadline: float = 15.0) -> Any:
    """The first true value of `what`; fails at the deadline."""
    end = time.monotonic() + deadline
    while True:
        if value := what():
            return value
        assert time.monotonic() < end, f"not in {deadline} s"
        time.sleep(0.02)


class Site:
    """Namespaces (network, pid) with a storage service and one guest in them.

    `holder` is process 1 of the pid namespace: its SIGKILL takes everything in it, as that of a lab's supervisor does.
    """

    def __init__(self, folder: Path, *, ordinary_user: bool = False) -> None:
        self.folder = folder
        self.fabric = folder / "fabric"
        self.state = folder / "guest-lin"
        self.fabric.mkdir()
        self.password_file = folder / "password"
        self.password_file.write_text(PASSWORD + "\n")
        self.processes: list[subprocess.Popen[str]] = []
        script = (
            "ip link set lo up && ip link add eth0 type veth peer name wire && ip addr add "
            f"{ADDRESS}/24 dev eth0 && ip link set eth0 up && ip link set wire up && echo ready && exec sleep 600"
        )
        become: tuple[str, ...] = ()
        self._enter = ["--net", "--pid"]
        if ordinary_user:
            become = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
            self._enter += ["--user", "--mount"]
            for path in (folder, *folder.iterdir()):
                os.chown(path, 65534, 65534)
        extra = ("--user", "--map-root-user", "--mount-proc") if ordinary_user else ()
        self.unshare = self._popen(
            *become, "unshare", "--net", "--pid", "--fork", "--kill-child", *extra, "sh", "-c", script
        )
        self._line(self.unshare)
        children = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children").read_text().split()
        self.holder = int(children[0])
        self.storage_process = self.inside(
            sys.executable, "-m", "fakes.storage", "--name", "datastore1", "--state", folder / "ds1",
            "--fabric", self.fabric, "--capacity", "512MiB",
        )  # fmt: skip
        self._line(self.storage_process)
        self.storage = FabricClient(self.fabric / "storage-datastore1.sock", timeout=20)
        disk = {"key": 2000, "label": "Hard disk 1", "size": SIZE, "file": "lin/lin.vmdk"}
        self.storage.call("vm.create", vm="lin", uuid=str(uuid.uuid4()), disks=[disk], files={})
        self.storage.call("vm.power", vm="lin", on=True)
        self.guest: subprocess.Popen[str] | None = None
        self.device: Path | None = None
        self.identity: tuple[int, int] | None = None

    def _popen(self, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(a) for a in arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        return process

    def inside(self, *arguments: object) -> subprocess.Popen[str]:
        """Starts a program in the namespaces (`nsenter` forks: the program is its child)."""
        return self._popen("nsenter", "--target", self.holder, *self._enter, *arguments)

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"{process.args} said nothing"
        return line

    def boot(self, *more: object, guardian: Path | None = None) -> subprocess.Popen[str]:
        """Starts the guest and waits until it is ready."""
        arguments: list[object] = [
            sys.executable, "-m", "fakes.linux_guest", "--vm", "lin",
            "--disk", f"nbd+unix:///live/lin/2000?socket={self.fabric}/nbd-datastore1.sock",
            "--address", ADDRESS, "--state", self.state, "--fabric", self.fabric,
            "--user", "backup", "--password-file", self.password_file, "--interval", "0.005",
        ]  # fmt: skip
        if guardian is not None:
            arguments += ["--guardian", guardian]
        self.guest = self.inside(*arguments, *more)
        assert self._line(self.guest) == f"ready lin on {ADDRESS}:22\n"
        if "--substitute" in arguments or "--user" in self._enter:
            return self.guest  # no loop device
        mounts = [line.split() for line in Path(f"/proc/{self.guest_pid()}/mounts").read_text().splitlines()]
        (self.device,) = (Path(m[0]) for m in mounts if m[1] == str(self.state / "work" / "disk"))
        with self.device.open("rb") as device:
            self.identity = loop.identity(device.fileno())
        assert self.identity is not None
        return self.guest

    def guest_pid(self) -> int:
        """The guest's supervising process, as this pid namespace numbers it."""
        assert self.guest is not None
        children = Path(f"/proc/{self.guest.pid}/task/{self.guest.pid}/children").read_text().split()
        return int(children[0])

    def shut_down(self) -> int:
        """SIGTERM to the guest; its exit code."""
        assert self.guest is not None
        os.kill(self.guest_pid(), signal.SIGTERM)
        return self.guest.wait(30)

    def free(self) -> bool:
        """True when the guest's loop device is free again."""
        assert self.device is not None and self.identity is not None
        return loop.wait_free(self.device, self.identity, 0)

    def record(self) -> list[dict[str, Any]]:
        """The freeze record."""
        path = self.state / "freeze.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def fabric_call(self, method: str, **params: Any) -> Any:
        client = FabricClient(self.fabric / "guest-lin.sock", timeout=20)
        try:
            return client.call(method, **params)
        finally:
            client.close()

    def connect(self) -> socket.socket:
        """A TCP connection to the guest's sshd, made in its network namespace."""
        made: list[socket.socket] = []

        def enter() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            fd = os.open(f"/proc/{self.holder}/ns/net", os.O_RDONLY)
            assert libc.setns(fd, _CLONE_NEWNET) == 0
            os.close(fd)
            made.append(socket.create_connection((ADDRESS, 22), timeout=10))

        thread = threading.Thread(target=enter)  # only this thread changes its namespace
        thread.start()
        thread.join(15)
        made[0].setblocking(False)
        return made[0]

    def ssh(self, *commands: str, **options: Any) -> list[asyncssh.SSHCompletedProcess]:
        """Runs commands in one SSH session."""

        async def session() -> list[asyncssh.SSHCompletedProcess]:
            login = {"username": "backup", "password": PASSWORD, "known_hosts": None, "config": None, **options}
            async with asyncssh.connect(sock=self.connect(), agent_path=None, **login) as connection:
                return [await asyncio.wait_for(connection.run(command), 20) for command in commands]

        return asyncio.run(session())

    def read(self, command: str) -> str:
        """Standard output of one command that must succeed."""
        (done,) = self.ssh(command)
        assert done.exit_status == 0, done.stderr
        return str(done.stdout)

    def close(self) -> None:
        self.storage.close()
        for process in reversed(self.processes):
            process.kill()
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()


def booked(site: Site) -> int:
    """Number of the ledger's last booking."""
    return int(json.loads(site.read("cat /run/guest/ledger.json"))["seq"])
