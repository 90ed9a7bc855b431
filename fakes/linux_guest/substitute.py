# SPDX-License-Identifier: MIT
"""A guest without real root (in a user namespace): DESIGN section 9, *Without root*.

No loop device and no ext4 can be mounted there. So the guest's root is in memory, and its disk holds a prepared ext4 image
of the same files, written through NBD when the disk is empty. What the running guest writes is not on the disk, and nothing
can be frozen: backups are crash-consistent. Where only one user id is mapped, OpenSSH cannot run and `sshserver` takes its
place.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import nbd

from fakes.core import fabric
from fakes.linux_guest import init, kernel, ledger, root
from fakes.linux_guest.disk import DiskFailed, parse_uri
from fakes.linux_guest.life import Life, fork_init, nothing
from fakes.linux_guest.machine import Machine

_BOOKINGS = 200
_BLOCK = 65536
_CONNECT = 20.0
_SSHD_IDS = 1000  # sshd needs root, its own account and nobody


def is_real_root() -> bool:
    """True for root of the machine: the only one who may mount a block device."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def mapped_ids() -> int:
    """How many user ids this namespace has."""
    return sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines())


def run(args: argparse.Namespace, guest: root.Guest, log: int) -> int:
    """Runs the guest until SIGTERM; exit code. Raises what `command` reports."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    work: Path = args.state / "work"
    work.mkdir(exist_ok=True)
    kernel.mount("tmpfs", work, "tmpfs", kernel.MS_NODEV, "mode=700,size=16m")
    tree, memory = work / "disk", work / "run"
    for folder, size in ((tree, "256m"), (memory, "64m")):
        folder.mkdir()
        kernel.mount("tmpfs", folder, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, f"mode=755,size={size}")
    root.install(tree, guest, fresh=True)
    book = ledger.Ledger(tree / root.LEDGER[1:])
    for _ in range(_BOOKINGS):
        book.book()
    book.close()
    fill(args.disk, tree, args.state)
    init.prepare_run(memory)
    return _live(args, guest, tree, memory, log)


def _live(args: argparse.Namespace, guest: root.Guest, tree: Path, memory: Path, log: int) -> int:
    sshd = mapped_ids() >= _SSHD_IDS
    go_read, go_write = os.pipe2(os.O_CLOEXEC)

    def body() -> int:
        return init.boot(tree, guest, memory, args.interval, go_read, real_root=False, sshd=sshd)

    pid = fork_init(body, keep={go_read})
    os.close(go_read)
    pidfd = os.pidfd_open(pid)
    tree_fd = os.open(tree, os.O_RDONLY | os.O_CLOEXEC)
    try:
        machine = Machine(vm=args.vm, fabric_folder=args.fabric, disk_fd=tree_fd, log_fd=log)
        beside = nothing
        if not sshd:
            from fakes.linux_guest import sshserver  # asyncssh takes its time: only who needs it pays for it

            beside = sshserver.Beside(guest, pid, tree / "etc/ssh/ssh_host_key").serve
        return asyncio.run(Life(args.vm, args.address, machine, memory, pidfd, go_write, beside=beside).lead())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(tree_fd)


def fill(uri: str, tree: Path, state: Path) -> None:
    """Writes an ext4 image of `tree` to the disk unless something is there. Raises DiskFailed."""
    export, path = parse_uri(uri)
    handle = nbd.NBD()
    try:
        handle.set_export_name(export)
        handle.connect_socket(fabric.connect(path, _CONNECT).detach())
        if handle.pread(2048, 0).strip(b"\0"):
            return
        image = state / "prepared.img"
        try:
            _make(image, tree, handle.get_size())
            with image.open("rb") as file:
                _copy(file.fileno(), handle)
        finally:
            image.unlink(missing_ok=True)
        handle.flush()
        handle.shutdown()
    except (nbd.Error, fabric.FabricUnavailable) as exc:
        raise DiskFailed(f"the disk cannot be written: {exc}") from exc


def _make(image: Path, tree: Path, size: int) -> None:
    program = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise DiskFailed("mkfs.ext4 is missing: apt-get install e2fsprogs", missing=True)
    with image.open("wb") as file:
        file.truncate(size)
    command = [program, "-q", "-F", "-b", "4096", "-L", "guest", "-d", str(tree), str(image)]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
    if done.returncode:
        raise DiskFailed(f"mkfs.ext4: {' '.join(done.stderr.decode(errors='replace').split())[:200]}")


def _copy(fd: int, handle: nbd.NBD) -> None:
    """The image's data; the superblock last, so that a disk that was written only in part counts as empty."""
    size = os.fstat(fd).st_size
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at -= at % _BLOCK
        data = os.pread(fd, _BLOCK, at)
        if at and data.strip(b"\0"):
            handle.pwrite(data, at)
        at += _BLOCK
    handle.pwrite(os.pread(fd, _BLOCK, 0), 0)
