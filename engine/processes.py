# SPDX-License-Identifier: MIT
"""Habits of every process of the engine, and how one starts another.

*Ready* is one JSON line on standard output, printed once the process answers its own protocol; whoever starts it waits for
that line. A process ends on SIGTERM and SIGINT, and dies with its parent. Secrets never stand in arguments or the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import ConnectTimedOut, VadplabError

_PR_SET_PDEATHSIG = 1
READY_DEADLINE = 15.0

T = TypeVar("T")


class ProcessFailed(VadplabError):
    """A process of the engine could not be started, or ended before it was ready."""

    code = "process.failed"
    symptom = "process ended"
    advice = "See the log of the machine on which the process was started."


class ThreadTimedOut(ConnectTimedOut):
    """A blocking call did not come back before its deadline."""

    code = "thread.timed-out"


class DiesWithParent:
    """`preexec_fn` of a child: SIGKILL for it when the thread that started it ends. Prepared before the fork."""

    def __init__(self) -> None:
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._parent = os.getpid()

    def __call__(self) -> None:
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._parent:
            os._exit(1)  # the parent ended between fork and prctl


def ready(fields: dict[str, Any]) -> None:
    """Announces on standard output that this process answers."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(fields, separators=(",", ":")) + "\n")
        sys.stdout.flush()


async def until_signal() -> int:
    """Returns the number of the SIGTERM or SIGINT that arrived."""
    loop = asyncio.get_running_loop()
    got: asyncio.Future[int] = loop.create_future()

    def arrived(number: int) -> None:
        if not got.done():
            got.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, arrived, number)
    try:
        return await got
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class Child:
    """A process of the engine that this one started."""

    def __init__(self, process: asyncio.subprocess.Process, ready_line: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready_line
        self._drain = asyncio.create_task(_discard(process.stdout))

    @classmethod
    async def start(
        cls, module: str, arguments: Sequence[str], *, deadline: float = READY_DEADLINE, log: Path | None = None
    ) -> Child:
        """Runs `python -m module arguments…` and waits for its ready line. `log`: file for its standard error.

        Raises:
            ProcessFailed: it ended, or printed something else, before it was ready.
        """
        stderr = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644) if log else None
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                preexec_fn=DiesWithParent(),
            )
        except OSError as exc:
            raise ProcessFailed(f"{module} could not be started: {exc.strerror}") from exc
        finally:
            if stderr is not None:
                os.close(stderr)
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), deadline)
            fields = json.loads(line)
            if not isinstance(fields, dict):
                raise ValueError("not an object")
        except (TimeoutError, ValueError) as exc:
            await stop(process, 1.0)
            why = "was not ready in time" if isinstance(exc, TimeoutError) else f"ended with {process.returncode}"
            raise ProcessFailed(f"{module} {why}") from exc
        except BaseException:
            await stop(process, 1.0)
            raise
        return cls(process, fields)

    async def wait(self) -> int:
        """Waits for its end and gives its exit code."""
        code = await self.process.wait()
        self._drain.cancel()
        return code

    async def stop(self, grace: float = 5.0) -> int:
        """SIGTERM, then SIGKILL after `grace` seconds; gives the exit code."""
        code = await stop(self.process, grace)
        self._drain.cancel()
        return code


async def stop(process: asyncio.subprocess.Process, grace: float) -> int:
    """Ends a process: SIGTERM, then SIGKILL after `grace` seconds."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), grace)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return process.returncode if process.returncode is not None else 0


async def in_thread(function: Callable[[], T], *, deadline: float, what: str = "call") -> T:
    """Runs a blocking function in a thread. After `deadline` seconds raises ThreadTimedOut; the thread is left to end."""
    work = asyncio.ensure_future(asyncio.to_thread(function))
    done, _ = await asyncio.wait([work], timeout=deadline)
    if not done:
        work.add_done_callback(_consume)
        raise ThreadTimedOut(f"{what}: no answer within {deadline:g} s")
    return work.result()


def reported(main: Callable[[], int]) -> int:
    """The exit code of a process: an error of the catalogue becomes two lines on standard error and its code."""
    try:
        return main()
    except VadplabError as exc:
        sys.stderr.write(f"{exc}\n  {exc.next}\n")
        return exc.exit_code
    except KeyboardInterrupt:
        return 1


def run(main: Callable[[list[str]], int]) -> None:
    """Entry of a process's `__main__`: runs `main` with the arguments and ends with its exit code (see `reported`), at once.

    `main` has given everything back when it returns. Python would go on for up to a second to take its modules apart, while
    somebody waits for this process to be gone.
    """
    code = reported(lambda: main(sys.argv[1:]))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


async def _discard(stream: asyncio.StreamReader | None) -> None:
    while stream is not None and await stream.read(65536):
        pass


def _consume(work: asyncio.Future[Any]) -> None:
    if not work.cancelled():
        work.exception()
