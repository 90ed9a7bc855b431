# SPDX-License-Identifier: MIT
"""The life of a guest as its supervising process sees it: fork process 1, wait until it is up, keep it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from fakes.core.daemon import ready, until_signal
from fakes.linux_guest import guardian, kernel
from fakes.linux_guest.machine import Machine, answers_ssh

_START = 60.0
_STOP = 20.0


class StartFailed(Exception):
    """The guest does not come up, or ended by itself."""


@contextlib.asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    """For guests that run all their services themselves."""
    yield


@dataclass
class Life:
    """What it takes to live.

    Attributes:
        machine: the hypervisor's side. run: the guest's /run, as this process sees it.
        pidfd: of process 1. go: pipe on which process 1 waits.
        alive: None, or why the guest cannot go on although process 1 lives.
        beside: services that this process runs for the guest while it lives.
    """

    vm: str
    address: str
    machine: Machine
    run: Path
    pidfd: int
    go: int
    alive: Callable[[], str | None] = lambda: None
    beside: Callable[[], AbstractAsyncContextManager[None]] = nothing

    async def lead(self) -> int:
        """Until SIGTERM: 0. Raises StartFailed."""
        ended = asyncio.create_task(self._until_ended())
        stopped = asyncio.create_task(until_signal())
        try:
            await self.machine.start(self.run / "guest" / "rpci.sock")
            with contextlib.suppress(BrokenPipeError):  # it ended already: `ended` says so
                os.write(self.go, b"g")
            os.close(self.go)
            async with self.beside():
                await self._be_there(ended, stopped)
        finally:
            await self.machine.stop()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_readable(self.pidfd), _STOP)
            for task in (ended, stopped):
                task.cancel()
            await asyncio.gather(ended, stopped, return_exceptions=True)
        return 0

    async def _be_there(self, ended: asyncio.Task[str], stopped: asyncio.Task[None]) -> None:
        up = asyncio.create_task(self._until_up())
        await asyncio.wait({up, ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            if ended.done():
                raise StartFailed(ended.result())
            up.result()
            ready(f"ready {self.vm} on {self.address}:22")
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if not stopped.done():
            raise StartFailed(ended.result())

    async def _until_up(self) -> None:
        if not await answers_ssh(self.address, _START):
            raise StartFailed(f"sshd does not greet on {self.address}:22")
        end = asyncio.get_running_loop().time() + _START
        while not (self.run / "guest" / "ledger.json").exists():
            if asyncio.get_running_loop().time() > end:
                raise StartFailed("the workload does not begin")
            await asyncio.sleep(0.02)

    async def _until_ended(self) -> str:
        """Why the guest ended by itself."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_readable(self.pidfd), 1.0)
                return "the guest ended by itself"
            if (why := self.alive()) is not None:
                return why


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(fd, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(fd)


def fork_init(body: Callable[[], int], keep: set[int]) -> int:
    """Forks process 1 of a new pid namespace; later children of this process are not in it."""
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    kernel.unshare(kernel.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(2, 1)  # the line on standard output is the parent's
            guardian.keep_only({0, 1, 2, *keep})
            code = body()
        except BaseException as exc:
            print(f"guest: {type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    kernel.setns(ours, kernel.CLONE_NEWPID)
    os.close(ours)
    return pid
