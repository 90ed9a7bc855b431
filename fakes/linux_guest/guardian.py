# SPDX-License-Identifier: MIT
"""The guardian: thaws a guest's file system when everything that could have thawed it was killed.

A frozen file system outlives its namespaces: a writer that waits in it cannot even be killed, so the pid namespace of the
lab would never end. Therefore a guest leaves with the guardian, over a Unix socket, a descriptor of each file system that
can be frozen (SCM_RIGHTS), and keeps that connection. When the connection ends, whatever ended it, the guardian thaws the
file system and closes its descriptor; the mount can go.

**It must be outside every pid namespace that dies with the guest.** In a lab the process that outlives the lab starts it
(`outside`, or `launch` before the namespaces are made); the supervisor passes the listening socket; guests are told its
path (`--guardian`). The guardian ends when its watch (a pipe) ends and no ward is left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fakes.core import fabric
from fakes.linux_guest import kernel

_MAX_MESSAGE = 4096
_RETRY = 0.02
_DYING = 60.0
_ANSWER = 10.0


class GuardianFailed(Exception):
    """The guardian does not answer, or refuses a ward."""


class Ward:
    """A guest's side: the file system is under guard until `release`, or until the process that holds this ends.

    No child may inherit the connection (it is close-on-exec; a forked child closes it), and the process that holds it must
    never write to the guarded file system itself.
    """

    def __init__(self, path: Path, *, vm: str, mount: str, fd: int, init: int, log: int) -> None:
        """Leaves `fd` (of the mounted file system), `init` (pidfd of the guest's process 1) and `log` (freeze record).

        Raises:
            GuardianFailed: nobody answers at `path`.
        """
        try:
            self._sock = fabric.connect(path, _ANSWER)
            socket.send_fds(self._sock, [json.dumps({"vm": vm, "mount": mount}).encode() + b"\n"], [fd, init, log])
            self._expect(b"guarded\n")
        except (OSError, fabric.FabricUnavailable) as exc:
            raise GuardianFailed(f"the guardian at {path} does not answer: {exc}") from exc

    def fileno(self) -> int:
        """Descriptor of the connection, for children that must close it."""
        return self._sock.fileno()

    def release(self) -> None:
        """Takes the file system back, so that it can be unmounted. Raises GuardianFailed."""
        try:
            self._sock.sendall(b"release\n")
            self._expect(b"released\n")
        except OSError as exc:
            raise GuardianFailed(f"the guardian does not answer: {exc}") from exc
        finally:
            self._sock.close()

    def _expect(self, line: bytes) -> None:
        got = self._sock.recv(_MAX_MESSAGE)
        if got != line:
            raise GuardianFailed(f"the guardian said {got.decode(errors='replace').strip() or 'nothing'}")


def serve(listener: socket.socket, watch: int) -> None:
    """Guards whatever is left at `listener` until `watch` (a pipe's reading end) ends and no ward is left."""
    wards: list[threading.Thread] = []
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(watch, select.POLLIN | select.POLLHUP)
    while True:
        ready = {fd for fd, _ in poll.poll(1000)}
        wards = [ward for ward in wards if ward.is_alive()]
        if listener.fileno() in ready:
            try:
                sock, _ = listener.accept()
            except OSError:
                continue
            ward = threading.Thread(target=_guard, args=(sock,), daemon=True)
            ward.start()
            wards.append(ward)
        elif watch in ready and not os.read(watch, 1):
            break
    listener.close()
    for ward in wards:
        ward.join()


def _guard(sock: socket.socket) -> None:
    fds: list[int] = []
    try:
        sock.settimeout(_ANSWER)
        data, fds, _, _ = socket.recv_fds(sock, _MAX_MESSAGE, 8)
        told = json.loads(data)
        if len(fds) != 3:
            sock.sendall(b"three descriptors are needed\n")
            return
        sock.sendall(b"guarded\n")
        sock.settimeout(None)  # as long as the guest lives; its end is an end of file
        if sock.recv(_MAX_MESSAGE) == b"release\n":
            for fd in fds:
                os.close(fd)
            fds = []
            sock.sendall(b"released\n")
            return
        _rescue(str(told["mount"]), *fds)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        print(f"guardian: {type(exc).__name__}: {exc}", file=sys.stderr)
    finally:
        for fd in fds:
            os.close(fd)
        sock.close()


def _rescue(mount: str, fd: int, init: int, log: int) -> None:
    """Thaws until the guest's process 1, and with it every process that could still be freezing, is gone."""
    poll = select.poll()
    poll.register(init, select.POLLIN)
    end = time.monotonic() + _DYING
    while True:
        gone = bool(poll.poll(0)) or time.monotonic() > end
        if kernel.thaw(fd):
            record(log, "thawed", mount, "guardian")
        if gone:
            return
        poll.poll(_RETRY * 1000)


def record(log: int, event: str, mount: str, by: str) -> None:
    """One line of the freeze record (docs/architecture.md, evidence files)."""
    entry = {"utc": time.time_ns(), "mono": time.monotonic_ns(), "event": event, "mount": mount, "by": by}
    os.write(log, json.dumps(entry).encode() + b"\n")


def launch(listener: socket.socket) -> tuple[int, int]:
    """Starts a guardian as a process of its own (double fork, own session) in the caller's pid namespace.

    Call it while the caller has one thread. Returns its pid and the watch: the guardian may end once this descriptor
    is closed (close-on-exec; to be held by the process whose end is the end of the lab).
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    told_read, told_write = os.pipe2(os.O_CLOEXEC)
    middle = os.fork()
    if middle:
        os.close(reading)
        os.close(told_write)
        with os.fdopen(told_read, "rb") as told:
            pid = int(told.read() or b"0")
        os.waitpid(middle, 0)
        if not pid:
            os.close(writing)
            raise GuardianFailed("the guardian did not start")
        return pid, writing
    try:
        os.setsid()
        pid = os.fork()
        if pid:
            os.write(told_write, str(pid).encode())
            os._exit(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        keep_only({2, listener.fileno(), reading})
        os.chdir("/")
        serve(listener, reading)
    finally:
        os._exit(0)


def keep_only(keep: set[int]) -> None:
    """Closes every other descriptor of this process."""
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if number not in keep:
            with contextlib.suppress(OSError):
                os.close(number)


class Caretaker(Protocol):
    """A lab's process outside its namespaces: what it holds in `cleanups` it calls when the lab is gone."""

    cleanups: list[Callable[[], None]]


def outside(caretaker: Caretaker, params: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
    """Starts the guardian beside a lab's caretaker. `fds`: the listening socket. Answers `{pid}`."""
    (fd,) = fds
    with socket.socket(fileno=fd) as listener:
        pid, watch = launch(listener)
    caretaker.cleanups.append(lambda: os.close(watch))
    return {"pid": pid}, ()


def main(argv: list[str]) -> int:
    """`python -m fakes.linux_guest.guardian --socket PATH`: guards until standard input ends."""
    parser = argparse.ArgumentParser(prog="guardian", description="thaws file systems whose guests were killed")
    parser.add_argument("--socket", type=Path, required=True, help="where guests leave their file systems")
    args = parser.parse_args(argv)
    listener = fabric.listen(args.socket)
    print(f"ready {args.socket}", flush=True)
    serve(listener, 0)
    args.socket.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
