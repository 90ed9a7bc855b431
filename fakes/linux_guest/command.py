# SPDX-License-Identifier: MIT
"""Starts a Linux guest in the network namespace of the caller; root is needed.

    python -m fakes.linux_guest --vm linux-vm --disk 'nbd+unix:///live/linux-vm/2000?socket=…/nbd-datastore1.sock'
        --address 10.77.11.10 --state DIR --fabric DIR --user backup --password-file FILE [--guardian SOCKET] …

Prints `ready …` when sshd greets and the workload has made its first booking. SIGTERM stops the workload, unmounts cleanly
and gives the loop device back. Exit codes: 0; 1 failed; 2 bad input; 3 something needed is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

from fakes.core import fabric
from fakes.core.daemon import die_with_parent
from fakes.linux_guest import guardian, init, kernel, root, substitute
from fakes.linux_guest.disk import DiskFailed, GuestDisk, parse_uri
from fakes.linux_guest.guardian import GuardianFailed, Ward
from fakes.linux_guest.life import Life, StartFailed, fork_init
from fakes.linux_guest.machine import Machine, open_record


class BadInput(Exception):
    """The command line cannot be used; exit code 2."""


def main(argv: list[str]) -> int:
    """Runs the guest until SIGTERM."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except BadInput as exc:
        code, text = 2, str(exc)
    except root.RootFailed as exc:
        code, text = 3, str(exc)
    except DiskFailed as exc:
        code, text = (3 if exc.missing else 1), str(exc)
    except (StartFailed, GuardianFailed) as exc:
        code, text = 1, str(exc)
    except OSError as exc:
        code, text = 1, f"{exc.strerror or exc}" if exc.filename is None else f"{exc.filename}: {exc.strerror}"
    print(f"linux guest: {text}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vadplab fake linux-guest", description="a Linux guest on its virtual disk")
    parser.add_argument("--vm", required=True, help="name of the VM")
    parser.add_argument("--disk", required=True, help="nbd+unix:///live/VM/KEY?socket=PATH")
    parser.add_argument("--address", required=True, help="IPv4 address on which sshd listens")
    parser.add_argument("--state", type=Path, required=True, help="folder for freeze.jsonl")
    parser.add_argument("--fabric", type=Path, required=True, help="fabric folder")
    parser.add_argument("--user", default="backup", help="account that may log in (uid 0)")
    secret = parser.add_mutually_exclusive_group(required=True)
    secret.add_argument("--password", help="its password (others on this machine may read it in the process list)")
    secret.add_argument("--password-file", type=Path, help="file whose first line is the password")
    parser.add_argument("--authorized-key", type=Path, help="public key that may log in")
    parser.add_argument("--host-key", type=Path, help="private SSH host key (default: made on first boot)")
    parser.add_argument("--hostname", help="default: the VM's name")
    parser.add_argument("--guardian", type=Path, help="socket of a guardian outside this pid namespace")
    parser.add_argument(
        "--substitute",
        choices=("auto", "always", "never"),
        default="auto",
        help="without real root: a prepared image instead of a mounted disk (default: when needed)",
    )
    parser.add_argument("--interval", type=float, default=0.05, help="seconds between two bookings of the workload")
    return parser


def _guest(args: argparse.Namespace) -> root.Guest:
    try:
        socket.inet_pton(socket.AF_INET, args.address)
        parse_uri(args.disk)
        password = args.password if args.password is not None else args.password_file.read_text().split("\n")[0]
        key = args.authorized_key.read_text() if args.authorized_key else None
        if args.host_key is not None:
            args.host_key.read_bytes()
    except ValueError as exc:
        raise BadInput(str(exc)) from exc
    except OSError as exc:
        raise BadInput(f"{exc.filename or args.address}: {exc.strerror or exc}") from exc
    if not password:
        raise BadInput("the password is empty")
    if not args.user.replace("-", "").replace("_", "").isalnum() or args.user in ("root", "nobody", "sshd"):
        raise BadInput(f"--user {args.user}: not a name for the account")
    if not args.fabric.is_dir():
        raise BadInput(f"{args.fabric}: no such folder")
    return root.Guest(args.hostname or args.vm, args.address, root.Account(args.user, password, key), args.host_key)


def _run(args: argparse.Namespace) -> int:
    guest = _guest(args)
    root.check_host()
    if os.geteuid() != 0:
        raise root.RootFailed("a guest needs root, or to be root in a user namespace")
    die_with_parent()
    kernel.name_process(f"vadplab-guest {args.vm}")
    log = open_record(args.state)
    if args.substitute == "always" or (args.substitute == "auto" and not substitute.is_real_root()):
        return substitute.run(args, guest, log)
    with contextlib.ExitStack() as cleanup:
        guardian_path = args.guardian or _own_guardian(args, cleanup)
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
        work = args.state / "work"  # empty again once this mount namespace is gone
        work.mkdir(exist_ok=True)
        kernel.mount("tmpfs", work, "tmpfs", kernel.MS_NODEV, "mode=700,size=64m")
        cleanup.callback(kernel.umount, work, lazy=True)
        disk = GuestDisk(args.disk, work)
        try:
            disk.attach()
            run = work / "run"
            run.mkdir()
            kernel.mount("tmpfs", run, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=64m")
            root.install(disk.mount_point, guest, fresh=disk.fresh)
            kernel.sync(disk.mount_point)  # as installers do: a crash from here on leaves a guest that boots
            init.prepare_run(run)
            return _live(args, guest, disk, run, guardian_path, log)
        finally:
            disk.detach()
            with contextlib.suppress(OSError):
                kernel.umount(work / "run")


def _own_guardian(args: argparse.Namespace, cleanup: contextlib.ExitStack) -> Path:
    """A guardian of this guest alone. It does not outlive this pid namespace: a lab has to give one (`--guardian`)."""
    path: Path = args.fabric / f"guardian-{args.vm}.sock"
    with fabric.listen(path) as listener:
        _, watch = guardian.launch(listener)
    cleanup.callback(os.close, watch)
    cleanup.callback(path.unlink, missing_ok=True)
    return path


def _live(
    args: argparse.Namespace, guest: root.Guest, disk: GuestDisk, run: Path, guardian_path: Path, log: int
) -> int:
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    pid = fork_init(lambda: init.boot(disk.mount_point, guest, run, args.interval, go_read), keep={go_read})
    os.close(go_read)
    pidfd = os.pidfd_open(pid)
    disk_fd = os.open(disk.mount_point, os.O_RDONLY | os.O_CLOEXEC)
    ward: Ward | None = None
    try:
        ward = Ward(guardian_path, vm=args.vm, mount="/", fd=disk_fd, init=pidfd, log=log)
        machine = Machine(vm=args.vm, fabric_folder=args.fabric, disk_fd=disk_fd, log_fd=log)
        life = Life(args.vm, args.address, machine, run, pidfd, go_write, alive=disk.trouble)
        return asyncio.run(life.lead())
    finally:
        with contextlib.suppress(OSError):
            kernel.thaw(disk_fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # ended already, unless something failed above
        os.waitpid(pid, 0)
        if ward is not None:
            ward.release()
        os.close(disk_fd)
