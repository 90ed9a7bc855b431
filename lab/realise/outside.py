# SPDX-License-Identifier: MIT
"""What must happen outside the lab's namespaces, and must still happen after the lab was killed.

The launcher forks one *caretaker* before it makes any namespace. It answers requests of the supervisor over a
SOCK_SEQPACKET pair and, when the last process of the lab is gone (end of file on the pair), runs the clean-ups that were
left with it: a container removed, a frozen file system thawed. It survives SIGKILL of launcher and supervisor alike.

Methods are functions `f(caretaker, params, fds) -> (result, fds)`, named in `METHODS` as `module:function` and imported on
first use, so that the caretaker stays small.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.errors import ControlFailed
from lab.realise import kernel

MAX_MESSAGE = 1 << 16
MAX_FDS = 16

METHODS: dict[str, str] = {
    "ping": "lab.realise.outside:ping",
    "guardian": "lab.realise.outside:guardian",
    "container.start": "lab.realise.container:start",
    "container.state": "lab.realise.container:state",
    "container.remove": "lab.realise.container:remove",
}
GUARDIAN_GRACE = 20.0


@dataclass
class Caretaker:
    """The outside process; `cleanups` run in reverse order when the lab is gone."""

    cleanups: list[Callable[[], None]] = field(default_factory=list)


Answer = tuple[Any, Sequence[int]]
Method = Callable[[Caretaker, dict[str, Any], list[int]], Answer]


def ping(caretaker: Caretaker, params: dict[str, Any], fds: list[int]) -> Answer:
    """Its pid; shows that the caretaker lives."""
    return {"pid": os.getpid(), "cleanups": len(caretaker.cleanups)}, ()


def guardian(caretaker: Caretaker, params: dict[str, Any], fds: list[int]) -> Answer:
    """Starts the guests' guardian on a listening socket; the caretaker ends after it, so that nobody is left behind."""
    from fakes.linux_guest import guardian as guests

    place = len(caretaker.cleanups)
    result, out = guests.outside(caretaker, params, fds)
    caretaker.cleanups.insert(place, lambda: _wait_gone(int(result["pid"]), GUARDIAN_GRACE))
    return result, out


def _wait_gone(pid: int, timeout: float) -> None:
    end = time.monotonic() + timeout
    while running(pid):
        if time.monotonic() > end:
            raise TimeoutError(f"process {pid} has not ended after {timeout:g} s")
        time.sleep(0.005)


def running(pid: int) -> bool:
    """Whether a process of that pid runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def start() -> tuple[int, socket.socket]:
    """Forks the caretaker; returns its pid and the supervisor's end of the pair. Call it while there is one thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    try:
        ours.close()
        os.setsid()
        kernel.name_process("vadplab-care")
        kernel.close_all_but({theirs.fileno()})
        kernel.fresh_streams()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # its end is the end of the lab, nothing else
        _serve(theirs)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def _serve(sock: socket.socket) -> None:
    caretaker = Caretaker()
    try:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(sock, MAX_MESSAGE, MAX_FDS)
            except OSError:
                return
            if not data:
                return
            answer, out = _call(caretaker, data, fds)
            try:
                socket.send_fds(sock, [json.dumps(answer, default=str).encode()], list(out))
            except OSError:
                return
            finally:
                for fd in out:
                    os.close(fd)
    finally:
        for cleanup in reversed(caretaker.cleanups):
            try:
                cleanup()
            except Exception:
                traceback.print_exc()


def _call(caretaker: Caretaker, data: bytes, fds: list[int]) -> tuple[dict[str, Any], Sequence[int]]:
    try:
        request = json.loads(data)
        module, _, name = METHODS[request["method"]].partition(":")
        method: Method = getattr(importlib.import_module(module), name)
        result, out = method(caretaker, request.get("params") or {}, fds)
        return {"result": result}, out
    except Exception as exc:
        traceback.print_exc()
        return {"error": f"{type(exc).__name__}: {exc}"}, ()


class Outside:
    """The supervisor's side: one request at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = asyncio.Lock()

    async def call(
        self, method: str, *, timeout: float = 60.0, fds: Sequence[int] = (), **params: Any
    ) -> tuple[Any, list[int]]:
        """A request and its result with the descriptors that came back (the caller's from then on).

        Raises:
            ControlFailed: it failed outside, or nobody answers there.
        """

        def exchange() -> tuple[bytes, list[int]]:
            self._sock.settimeout(timeout)
            socket.send_fds(self._sock, [json.dumps({"method": method, "params": params}).encode()], list(fds))
            data, received, _, _ = socket.recv_fds(self._sock, MAX_MESSAGE, MAX_FDS)
            for fd in received:
                os.set_inheritable(fd, False)
            return data, received

        async with self._lock:
            try:
                data, received = await asyncio.to_thread(exchange)
            except OSError as exc:
                raise ControlFailed(f"outside the lab, {method}: {exc}") from exc
        if not data:
            raise ControlFailed(f"outside the lab, {method}: nobody answers")
        reply = json.loads(data)
        if "error" in reply:
            raise ControlFailed(f"outside the lab, {method}: {reply['error']}")
        return reply["result"], received

    def close(self) -> None:
        """Closes this end."""
        with contextlib.suppress(OSError):
            self._sock.close()
