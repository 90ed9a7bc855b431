# SPDX-License-Identifier: MIT
"""What tests do to processes of other programs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def suspend(pid: int, *, seconds: float = 20.0) -> None:
    """Stop the process `pid` with SIGSTOP and return when each of its threads has stopped.

    kill(2) only leaves the signal: on a busy machine the other threads go on for a while, and a server still answers.
    Raises TimeoutError when a thread is not stopped within `seconds`.
    """
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + seconds
    while running := [task.name for task in Path(f"/proc/{pid}/task").iterdir() if not _stopped(task)]:
        if time.monotonic() > end:
            raise TimeoutError(f"threads {', '.join(running)} of process {pid} still run {seconds} s after SIGSTOP")
        time.sleep(0.002)


def _stopped(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] in "tTZX"
    except (FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
        return True
