# SPDX-License-Identifier: MIT
"""The zygote: a small process of the lab that forks every other one.

It is forked from the supervisor while that has one thread, imports what the daemons need once, and then answers
requests: fork, enter the host's network namespace, run `module.main(argv)` or a program. Twelve daemons start in tens of
milliseconds instead of a second (lab reference, section 6). It is the subreaper of the lab: orphans end here, and every
end is reported.

Wire: one JSON object a datagram over a SOCK_SEQPACKET pair, descriptors beside it.

request   {op: spawn, id, name, module | null, argv, env, cwd, tty, own_mounts, own_pids, extra}
          descriptors: stdin, stdout, stderr, network namespace (if any), then `extra` more that become 3, 4, …
reply     {op: started, id, pid} or {op: refused, id, message}
later     {op: exited, pid, code}        code as a shell gives it: 128 + signal for a killed process
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import termios
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from lab.realise import kernel

MAX_MESSAGE = 1 << 17
MAX_FDS = 64
_RESET = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)


def start(preload: Sequence[str]) -> tuple[int, socket.socket]:
    """Forks the zygote; returns its pid and the supervisor's end of the pair. Call it while there is one thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    code = 1
    try:
        kernel.die_with_parent()
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        kernel.name_process("zygote")
        kernel.become_subreaper()
        kernel.close_all_but({theirs.fileno()})
        kernel.fresh_streams()
        ours.detach()
        code = _serve(theirs, list(preload))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _preload(name: str) -> None:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit):  # the spawn that needs it will say so to whoever asked
        print(f"zygote: cannot import {name} ahead of time", file=sys.stderr)
        traceback.print_exc()
    sys.stderr.flush()


def _serve(sock: socket.socket, preload: list[str]) -> int:
    """Answers requests; while none is waiting it imports one of `preload` at a time."""
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    own = (sock.fileno(), wake_read, wake_write)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    while True:
        events = poll.poll(0 if preload else None)
        if not events and preload:
            _preload(preload.pop(0))
            if not preload:
                gc.freeze()
        for fd, _ in events:
            if fd == wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
                continue
            data, fds, _, _ = socket.recv_fds(sock, MAX_MESSAGE, MAX_FDS)
            if not data:
                return 0
            _answer(sock, json.loads(data), fds, own)
        _reap(sock)


def _answer(sock: socket.socket, request: dict[str, Any], fds: list[int], own: tuple[int, ...]) -> None:
    try:
        pid = os.fork()
    except OSError as exc:
        _send(sock, {"op": "refused", "id": request["id"], "message": f"fork: {exc.strerror}"})
    else:
        if pid == 0:
            _child(request, fds, own)
        _send(sock, {"op": "started", "id": request["id"], "pid": pid})
    finally:
        for fd in fds:
            os.close(fd)


def _reap(sock: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _send(sock, {"op": "exited", "pid": pid, "code": shell_code(status)})


def shell_code(status: int) -> int:
    """A wait status as a shell shows it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _send(sock: socket.socket, message: dict[str, Any]) -> None:
    sock.send(json.dumps(message).encode())


def _child(request: dict[str, Any], fds: list[int], own: tuple[int, ...]) -> None:
    """The forked child: becomes the requested process and never returns."""
    code = 125
    try:
        signal.set_wakeup_fd(-1)
        for number in _RESET:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        kernel.die_with_parent()
        os.setsid()
        netns, extra = _place(fds, own, int(request["extra"]))
        if netns is not None:
            kernel.setns(netns)
            os.close(netns)
        if request["tty"]:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        kernel.name_process(request["name"])
        if request["own_mounts"] or request["own_pids"]:
            kernel.unshare(kernel.CLONE_NEWNS)
            kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
        if request["own_pids"]:
            _enter_pid_namespace()
            kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        del extra
        code = _become(request)
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        if isinstance(exc.code, str):
            print(exc.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _place(fds: list[int], own: tuple[int, ...], extra: int) -> tuple[int | None, list[int]]:
    """Puts the received descriptors where the process expects them: 0, 1, 2, and `extra` more from 3 upwards."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 256) for fd in fds]
    for fd in (*own, *fds):
        os.close(fd)
    for target in range(3):
        os.dup2(high[target], target)
        os.close(high[target])
    rest = high[3:]
    netns = rest.pop(0) if len(rest) > extra else None
    numbers = []
    for number, fd in enumerate(rest, 3):
        os.dup2(fd, number)
        os.close(fd)
        numbers.append(number)
    return netns, numbers


def _enter_pid_namespace() -> None:
    """Returns in the first process of a new pid namespace; the old process waits for it and passes signals and code."""
    kernel.unshare(kernel.CLONE_NEWPID)
    inner = os.fork()
    if inner == 0:
        kernel.die_with_parent()
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda caught, frame: os.kill(inner, caught))
    for fd in (0, 1, 2):
        os.close(fd)
    _, status = os.waitpid(inner, 0)
    os._exit(shell_code(status))


def _become(request: dict[str, Any]) -> int:
    os.chdir(request["cwd"])
    environment: dict[str, str] = request["env"]
    argv: list[str] = request["argv"]
    if request["module"] is None:
        try:
            os.execvpe(argv[0], argv, environment)
        except OSError as exc:
            print(f"{argv[0]}: {exc.strerror}", file=sys.stderr)
            return 127 if isinstance(exc, FileNotFoundError) else 126
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as every Python program starts: a peer that goes away is an error
    os.environ.clear()
    os.environ.update(environment)
    kernel.fresh_streams()
    module = str(request["module"])
    sys.argv = [module, *argv]
    return int(_entry(module)(argv) or 0)


def _entry(name: str) -> Callable[[list[str]], int | None]:
    module = importlib.import_module(name)
    if not hasattr(module, "main"):
        module = importlib.import_module(f"{name}.__main__")
    entry: Callable[[list[str]], int | None] = module.main
    return entry
