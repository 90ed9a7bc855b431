# SPDX-License-Identifier: MIT
"""The engine's record of what it did: one JSON object a line, appended by each process to its machine's event file.

Fields of every event: `schema` "vadplab.event/1", `kind`, `utc` and `mono` (ns; wall clock and CLOCK_MONOTONIC),
`session` (the job run, restore or rescan), `host` (this machine's configured name), `process`, `pid`, `step`, `task`.

kind      further fields
step      phase begin|end|skipped|failed, text           a step of `engine.steps` begins or ends
attempt   attempt (id), target (name), local [ip, port], remote [ip, port]     written BEFORE the SYN leaves
outcome   attempt, outcome open|refused|prohibited|timed out|unreachable|..., code (error code or null), ms
use       attempt                                        a later step uses a connection that an earlier one opened
bytes     attempt, sent, received                        totals when the connection ends
note      text, data                                     anything a reader should know (failover, warning)

Secrets never enter an event: `note.data` holds names, counts and codes only.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

SCHEMA = "vadplab.event/1"


class EventLog:
    """Appends events of one process for one session. Lines are written with one O_APPEND write, so files can be shared."""

    def __init__(
        self, path: Path | None, *, host: str, process: str, session: str | None = None, task: str | None = None
    ) -> None:
        self.host = host
        self.process = process
        self.session = session
        self.task = task
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644) if path else None
        self._lock = threading.Lock()

    def for_session(self, session: str, *, task: str | None = None) -> EventLog:
        """The same file, other session or task."""
        return EventLog(self._path, host=self.host, process=self.process, session=session, task=task)

    def emit(self, kind: str, *, step: str | None = None, task: str | None = None, **fields: Any) -> dict[str, Any]:
        """Writes one event and returns it."""
        event: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": kind,
            "utc": time.time_ns(),
            "mono": time.monotonic_ns(),
            "session": self.session,
            "host": self.host,
            "process": self.process,
            "pid": os.getpid(),
            "step": step,
            "task": task or self.task,
            **fields,
        }
        if self._fd is not None:
            line = json.dumps(event, separators=(",", ":"), default=str).encode() + b"\n"
            with self._lock:
                os.write(self._fd, line)
        return event

    def step(self, step: str, phase: str, text: str = "", **data: Any) -> dict[str, Any]:
        """A step begins, ends, is skipped or failed."""
        return self.emit("step", step=step, phase=phase, text=text, data=data)

    def note(self, text: str, *, step: str | None = None, **data: Any) -> dict[str, Any]:
        """Something a reader should know."""
        return self.emit("note", step=step, text=text, data=data)

    def use(self, attempt: str, *, step: str) -> dict[str, Any]:
        """`step` uses the connection opened as `attempt`."""
        return self.emit("use", step=step, attempt=attempt)

    def close(self) -> None:
        """Closes the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def new_id() -> str:
    """A short unique id for sessions and attempts."""
    return uuid.uuid4().hex[:16]
