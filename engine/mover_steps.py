# SPDX-License-Identifier: MIT
"""The steps 18 to 21 of one task as its Data Mover tells them: consoles see what the mover writes into its events.

A mover reports `{step, phase, text}` when it writes the begin, end or failure of a step, and `{step}` alone as a sign of life.
"""

from __future__ import annotations

import asyncio
from typing import Any

from engine.errors import VadplabError
from engine.report import Reporter
from engine.rpc.client import CallTimedOut
from engine.rpc.frames import WireClosed
from engine.steps import BY_MOVER


class MoverSteps:
    """Follows one attempt of one task. `current`: the step that the mover was last known to be in."""

    def __init__(self, report: Reporter, task: str, proxy: str) -> None:
        self.current: str | None = None
        self._report = report
        self._task = task
        self._proxy = proxy
        self._open: list[str] = []
        self._failed: set[str] = set()

    def heard(self, item: dict[str, Any]) -> None:
        """A progress message of the mover."""
        step, phase = item.get("step"), item.get("phase")
        if step not in BY_MOVER:
            return
        self.current = step
        if phase is None:
            return
        if step in self._open:
            self._open.remove(step)
        if phase == "begin":
            self._open.append(step)
            self._failed.discard(step)
        elif phase == "failed":
            self._failed.add(step)
        self._report.relay(step, str(phase), task=self._task, text=str(item.get("text") or ""))

    def broken(self, exc: BaseException, step: str) -> None:
        """The attempt failed; `step`: where, when neither the error nor the mover say it.

        A mover that is gone has written no end of its steps: then it is written here, so that events and consoles agree.
        """
        if isinstance(exc, asyncio.CancelledError):
            for one in self._open:
                self._report.relay(one, "failed", task=self._task, text="stopped")
        elif isinstance(exc, VadplabError):
            if isinstance(exc, CallTimedOut | WireClosed) and exc.target == self._proxy and self.current:
                exc.step = self.current  # the mover said nothing more: it was there
            exc.step = exc.step or self.current or step
            for one in dict.fromkeys([*self._open, *([exc.step] if exc.step in BY_MOVER else [])]):
                if one not in self._failed:
                    self._report.failed(one, task=self._task, error=exc)
        self._open.clear()
