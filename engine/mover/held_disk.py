# SPDX-License-Identifier: MIT
"""A VM's disk in the hands of a task on the proxy: opened once, moved by one pipeline, given back whatever happens."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Generic, Protocol

from engine.errors import VadplabError
from engine.events import EventLog
from engine.modes.opening import D, Opened, Steps
from engine.mover.background import background
from engine.mover.errors import NotReady, Stopped

OPENING_ENDS = 10.0
"""Seconds that the end of the task waits for an open that is under way."""


class Pipeline(Protocol):
    """What moves a disk's blocks."""

    def stop(self) -> None:
        """Makes it end soon; from any thread."""


class HeldDisk(Generic[D]):
    """One disk. `close` may be called at any time, from any thread; it also ends an open that is under way."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._begun = self._taken = self._closed = False
        self._steps = Steps()
        self._opened: Opened[D] | None = None
        self._pipeline: Pipeline | None = None

    async def open(self, opening: Callable[[], Opened[D]], steps: Steps) -> Opened[D]:
        """Opens the disk with `opening`, which blocks. `steps`: those in which it is moved, for errors.

        Raises:
            NotReady: it was opened before. Stopped: the task was stopped meanwhile.
        """
        if self._begun:
            raise NotReady("the disk was opened before")
        self._begun = True
        self._idle.clear()
        self._steps = steps

        def work() -> Opened[D]:
            try:
                return self._keep(opening())
            finally:
                self._idle.set()

        return await background(work)

    def take(self) -> Opened[D]:
        """The open disk, for the one pipeline that moves it. Raises NotReady: it is not open, or was taken before."""
        if self._opened is None or self._taken:
            raise NotReady("the disk is not open, or its blocks were asked for before")
        self._taken = True
        return self._opened

    def moved_by(self, pipeline: Pipeline) -> None:
        """`close` stops the pipeline first."""
        self._pipeline = pipeline

    def close(self) -> None:
        """Ends the pipeline and gives the disk back (HotAdd: detaches it). Blocking; never raises."""
        with self._lock:
            self._closed = True
        self._idle.wait(OPENING_ENDS)  # a disk that is just being attached must be detached again
        with self._lock:
            opened = self._opened
            if self._pipeline is not None:
                self._pipeline.stop()
            if opened is None:
                return
            try:
                opened.disk.close()
            except VadplabError as exc:
                self._events.note(exc.message, step=exc.step or self._steps.of(opened.mode), code=exc.code)

    def _keep(self, opened: Opened[D]) -> Opened[D]:
        with self._lock:
            if not self._closed:
                self._opened = opened
                return opened
        with contextlib.suppress(VadplabError):
            opened.disk.close()
        raise Stopped("the task was stopped", step=self._steps.of(opened.mode))
