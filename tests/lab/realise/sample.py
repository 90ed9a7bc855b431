# SPDX-License-Identifier: MIT
"""A daemon for tests of the zygote; its first argument says how it behaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lab.realise.outside import Answer, Caretaker


def main(argv: list[str]) -> int:
    """Behaves as told: ready, dies, silent, exit, text-exit, pid, orphan, environment, fd, deaf."""
    match argv[0]:
        case "ready":
            print("ready", argv[1:], flush=True)
            print("more output")
            print("an error", file=sys.stderr)
            signal.sigwait({signal.SIGTERM})
            return 3
        case "dies":
            print("last words", file=sys.stderr)
            return 4
        case "silent":
            time.sleep(60)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("deaf", flush=True)
            time.sleep(60)
        case "exit":
            print("leaving", flush=True)
            return int(argv[1])
        case "text-exit":
            sys.exit("a reason")
        case "raises":
            raise RuntimeError("broken on purpose")
        case "pid":
            print(os.getpid(), len([p for p in Path("/proc").iterdir() if p.name.isdigit()]), flush=True)
            signal.sigwait({signal.SIGTERM})
        case "orphan":
            subprocess.Popen(["sh", "-c", "sleep 0.05 & echo $!; exec sleep 0.1 &"], stdout=1).wait()
            time.sleep(60)
        case "environment":
            print(sorted(os.environ), flush=True)
        case "fd":
            print(os.read(3, 100).decode(), flush=True)
    return 0


def leave_note(caretaker: Caretaker, params: dict[str, Any], fds: list[int]) -> Answer:
    """An outside method: when the lab is gone, writes what it was told to a file; gives back a pipe with text in it."""
    caretaker.cleanups.append(lambda: Path(params["path"]).write_text(params["text"]))
    read, write = os.pipe()
    os.write(write, b"from outside")
    os.close(write)
    return {"left": True}, [read]


def fail(caretaker: Caretaker, params: dict[str, Any], fds: list[int]) -> Answer:
    """An outside method that fails."""
    raise RuntimeError("no container today")
