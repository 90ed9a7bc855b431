# SPDX-License-Identifier: MIT
"""Process 1 of the guest: makes its view of the machine, then runs sshd, the workload and the Tools daemon.

Forked (not executed) from the process that attached the disk; after `enter` nothing of the host but /usr can be reached.
It ends when its parent ends (SIGKILL), when told to (SIGTERM), or when one of its services ends.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fakes.core.daemon import die_with_parent
from fakes.linux_guest import freezer, kernel, ledger, root
from fakes.tools import daemon as tools

_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_STOP = 10.0
STATUS = f"{root.RUN}/ledger.json"


def enter(disk: Path, guest: root.Guest, run: Path, *, real_root: bool) -> None:
    """Own mount, UTS and IPC namespaces with the disk as root. `run`: a tmpfs that becomes the guest's /run.

    Without real root (in a user namespace) device nodes are the host's, bound, since none can be made.
    """
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC)
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.set_hostname(guest.hostname)
    _usr(disk / "usr", run / "guest")
    kernel.mount(run, disk / "run", flags=kernel.MS_BIND)
    kernel.mount("tmpfs", disk / "tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=1777,size=64m")
    _devices(disk / "dev", real_root)
    kernel.mount("proc", disk / "proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    for name in ("sys", "sysrq-trigger"):  # what is written there would change the host
        if (disk / "proc" / name).exists():
            kernel.bind_read_only(disk / "proc" / name, disk / "proc" / name)
    kernel.pivot_root(disk)
    kernel.drop_capabilities()
    os.umask(0o022)


def prepare_run(run: Path) -> None:
    """Fills the tmpfs that becomes the guest's /run."""
    (run / "sshd").mkdir(mode=0o755)
    folder = run / "guest"
    folder.mkdir(mode=0o755)
    program = folder / root.FREEZE_TOOL[1:]
    program.parent.mkdir(parents=True)
    program.write_text(freezer.tool(root.interpreter(), root.RPCI))
    program.chmod(0o755)


def _usr(target: Path, folder: Path) -> None:
    """The host's /usr with our `fsfreeze` over it, read-only.

    An overlay and not a bind mount: with a bind mount, FIFREEZE on the guest's /usr would freeze the host's own disk.
    """
    os.chdir(folder)  # a relative path needs no escapes in the mount options
    kernel.mount("overlay", target, "overlay", kernel.MS_RDONLY | kernel.MS_NODEV, "lowerdir=usr:/usr")
    os.chdir("/")


def _devices(dev: Path, real_root: bool) -> None:
    kernel.mount("tmpfs", dev, "tmpfs", kernel.MS_NOSUID, "mode=755,size=1m")
    mask = os.umask(0)
    for name, (major, minor) in _DEVICES.items():
        if real_root:
            os.mknod(dev / name, 0o020666, os.makedev(major, minor))
        else:
            (dev / name).touch()
            kernel.mount(Path("/dev", name), dev / name, flags=kernel.MS_BIND)
    os.umask(mask)
    (dev / "pts").mkdir()
    (dev / "shm").mkdir()
    options = "newinstance,ptmxmode=0666,mode=620" + (",gid=5" if real_root else "")
    kernel.mount("devpts", dev / "pts", "devpts", kernel.MS_NOSUID | kernel.MS_NOEXEC, options)
    kernel.mount("tmpfs", dev / "shm", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=1777,size=16m")
    (dev / "ptmx").symlink_to("pts/ptmx")
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (dev / name).symlink_to(target)


class Services:
    """The guest's services; each is a child of this process."""

    def __init__(self, address: str, interval: float, *, sshd: bool) -> None:
        self._sshd = sshd
        self._address = address
        self._interval = interval
        self._pids: dict[int, str] = {}
        self._stopping = False

    def run(self) -> int:
        """Until SIGTERM (0) or until a service ends (1)."""
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for name, body in (
            ("sshd", _sshd),
            ("ledger", lambda: ledger.run(Path(root.LEDGER), Path(STATUS), self._interval)),
            ("vmtoolsd", lambda: tools.run(Path(root.RPCI), self._address)),
        ):
            if name != "sshd" or self._sshd:
                self._pids[_spawn(name, body)] = name
        code = 0
        while self._pids:
            pid, status = os.wait()
            ended = self._pids.pop(pid, None)
            if ended is not None and not self._stopping:
                print(f"guest: {ended} ended ({os.waitstatus_to_exitcode(status)})", file=sys.stderr, flush=True)
                code = 1
                self._terminate()
        _end_everything()
        return code

    def _terminate(self, *_: object) -> None:
        self._stopping = True
        for pid in self._pids:
            os.kill(pid, signal.SIGTERM)


def _sshd() -> int:
    os.execve(
        "/usr/sbin/sshd", ["/usr/sbin/sshd", "-D", "-e"], {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    )


def _spawn(name: str, body: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        kernel.name_process(name)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = body()
    except BaseException as exc:
        print(f"guest: {type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _end_everything() -> None:
    """Ends what sessions left running: they would keep the disk busy."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(-1, number)
        except ProcessLookupError:
            return
        end = time.monotonic() + (1.0 if number == signal.SIGTERM else _STOP)
        while time.monotonic() < end:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.01)
            except ChildProcessError:
                return


def boot(
    disk: Path,
    guest: root.Guest,
    run: Path,
    interval: float,
    go: int,
    *,
    real_root: bool = True,
    sshd: bool = True,
) -> int:
    """The life of process 1. `go`: a pipe; the services start when a byte comes (the guardian holds the disk then)."""
    die_with_parent()
    kernel.name_process("init")
    enter(disk, guest, run, real_root=real_root)
    if os.read(go, 1) != b"g":
        return 1
    os.close(go)
    return Services(guest.address, interval, sshd=sshd).run()
