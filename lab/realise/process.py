# SPDX-License-Identifier: MIT
"""The supervisor's view of the processes of the lab: starting them through the zygote, their readiness, their end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.errors import ComponentMissing, ProcessFailed
from lab.realise import zygote

READY_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0
LOG_TAIL = 4096


@dataclass(eq=False)
class Process:
    """A process of the lab. `pid` is that of the lab's pid namespace; `code` is None while it runs."""

    host: str | None
    name: str
    pid: int
    log: Path | None
    ended: asyncio.Future[int]
    first_line: asyncio.Future[str]
    started: float = field(default_factory=time.monotonic)
    ready_line: str | None = None
    stage: int = 0

    @property
    def code(self) -> int | None:
        """Exit code as a shell shows it (128 + signal), or None while it runs."""
        return self.ended.result() if self.ended.done() else None

    async def wait(self, timeout: float | None = None) -> int:
        """Waits for its end and returns its exit code; TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            return await asyncio.shield(self.ended)

    def send_signal(self, number: int = signal.SIGTERM) -> None:
        """Sends it a signal; nothing happens when it has ended."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill_group(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to it and to the children that stayed in its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def terminate(self, timeout: float = STOP_TIMEOUT) -> int:
        """SIGTERM, and SIGKILL for its group when it still runs after `timeout` seconds. Returns its exit code."""
        self.send_signal(signal.SIGTERM)
        try:
            return await self.wait(timeout)
        except TimeoutError:
            self.kill_group(signal.SIGKILL)
            return await self.wait(STOP_TIMEOUT)

    def tail(self) -> str:
        """The end of its log."""
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - LOG_TAIL))
            return file.read().decode(errors="replace").strip()


class Processes:
    """Starts processes through the zygote and follows them. Make it inside the running loop."""

    def __init__(self, sock: socket.socket) -> None:
        self.all: list[Process] = []
        self.zygote_ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sock = sock
        self._sock.setblocking(False)
        self._next = 0
        self._starting: dict[int, tuple[asyncio.Future[Process], Process]] = {}
        self._running: dict[int, Process] = {}
        asyncio.get_running_loop().add_reader(sock, self._receive)

    async def start(
        self,
        host: str | None,
        name: str,
        *,
        module: str | None,
        argv: Sequence[str],
        env: dict[str, str],
        cwd: str,
        stdio: tuple[int, int, int],
        netns: int | None,
        extra: Sequence[int] = (),
        tty: bool = False,
        own_mounts: bool = False,
        own_pids: bool = False,
        log: Path | None = None,
    ) -> Process:
        """Starts one process; every descriptor stays the caller's.

        Raises:
            ProcessFailed: the zygote could not fork it.
        """
        loop = asyncio.get_running_loop()
        self._next += 1
        number = self._next
        request = {
            "op": "spawn",
            "id": number,
            "name": name,
            "module": module,
            "argv": list(argv),
            "env": env,
            "cwd": cwd,
            "tty": tty,
            "own_mounts": own_mounts,
            "own_pids": own_pids,
            "extra": len(extra),
        }
        fds = [*stdio, *([] if netns is None else [netns]), *extra]
        process = Process(host, name, 0, log, loop.create_future(), loop.create_future())
        started: asyncio.Future[Process] = loop.create_future()
        self._starting[number] = (started, process)
        try:
            socket.send_fds(self._sock, [json.dumps(request).encode()], fds)
        except OSError as exc:
            del self._starting[number]
            raise ProcessFailed(f"{_place(process)}: the zygote does not answer: {exc.strerror}", host=host) from exc
        return await started

    async def ready(self, process: Process, timeout: float) -> str:
        """Waits for the process's first line on standard output.

        Raises:
            ProcessFailed: it ended first, or said nothing in time (it is killed then); the message ends with its log.
            ComponentMissing: it ended first, with the exit code for it.
        """
        first: asyncio.Future[Any] = process.first_line
        await asyncio.wait({first, process.ended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not first.done() and process.ended.done():  # its last words may still be in the pipe
            await asyncio.wait({first}, timeout=0.2)
        if first.done():
            process.ready_line = str(first.result())
            return process.ready_line
        if process.ended.done():
            what = f"ended with code {process.code} before it was ready"
        else:
            what = f"was not ready after {timeout:g} s"
            process.kill_group()
        tail = process.tail()
        if process.ended.done() and process.code == ComponentMissing.exit_code and tail:
            raise ComponentMissing(f"{_place(process)}: {tail.splitlines()[-1]}", host=process.host)
        raise ProcessFailed(f"{_place(process)} {what}" + (f":\n{tail}" if tail else ""), host=process.host)

    def pump(self, process: Process, pipe: int) -> None:
        """Copies the process's standard output from `pipe` (owned from here on) to its log; the first line is readiness."""
        loop = asyncio.get_running_loop()
        os.set_blocking(pipe, False)
        log = (
            os.open(process.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640) if process.log else None
        )
        head = bytearray()

        def copy() -> None:
            try:
                data = os.read(pipe, 1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                loop.remove_reader(pipe)
                os.close(pipe)
                if log is not None:
                    os.close(log)
                return
            if log is not None:
                os.write(log, data)
            if not process.first_line.done():
                head.extend(data)
                line, newline, _ = head.partition(b"\n")
                if newline:
                    process.first_line.set_result(line.decode(errors="replace"))
                    head.clear()

        loop.add_reader(pipe, copy)

    def _receive(self) -> None:
        while True:
            try:
                data = self._sock.recv(zygote.MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                asyncio.get_running_loop().remove_reader(self._sock)
                if not self.zygote_ended.done():
                    self.zygote_ended.set_result(None)
                for started, process in self._starting.values():
                    started.set_exception(ProcessFailed(f"{_place(process)}: the zygote has ended", host=process.host))
                self._starting.clear()
                for process in self._running.values():  # each dies with the zygote, by its death signal
                    if not process.ended.done():
                        process.ended.set_result(128 + signal.SIGKILL)
                self._running.clear()
                return
            self._handle(json.loads(data))

    def _handle(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "started":
                started, process = self._starting.pop(message["id"])
                process.pid = message["pid"]
                self._running[process.pid] = process
                self.all.append(process)
                if started.done():  # whoever asked for it has been cancelled meanwhile
                    process.kill_group()
                else:
                    started.set_result(process)
            case "refused":
                started, process = self._starting.pop(message["id"])
                if not started.done():
                    text = f"{_place(process)}: {message['message']}"
                    started.set_exception(ProcessFailed(text, host=process.host))
            case "exited":
                ended = self._running.pop(message["pid"], None)  # None: an orphan that the zygote reaped
                if ended is not None and not ended.ended.done():
                    ended.ended.set_result(message["code"])


def _place(process: Process) -> str:
    return f"{process.host}: {process.name}" if process.host else process.name
