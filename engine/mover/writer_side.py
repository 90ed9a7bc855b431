# SPDX-License-Identifier: MIT
"""The proxy's side of a restore into a VM: receives checked blocks from the repository and writes them into the VM's disk."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from engine.config import EngineConfig
from engine.dialer import Dialer
from engine.errors import VadplabError
from engine.modes.opening import Opened, Opening, Steps
from engine.mover import protocol
from engine.mover.background import background
from engine.mover.datalink import DataLink
from engine.mover.errors import NotReady, Stopped
from engine.mover.source_side import OPENING_ENDS, PROGRESS, Report
from engine.mover.write_pipeline import WritePipeline


class WriterSide:
    """One disk that is written. `close` may be called at any time; it also ends an open that is under way."""

    def __init__(self, config: EngineConfig, dialer: Dialer, stop: threading.Event) -> None:
        self._events = dialer.events
        self._config = config
        self._dialer = dialer
        self._stop = stop
        self._steps = Steps()
        self._lock = threading.Lock()
        self._begun = False
        self._idle = threading.Event()
        self._idle.set()
        self._closed = False
        self._opened: Opened | None = None
        self._pipeline: WritePipeline | None = None

    async def open(self, params: protocol.WriterOpen) -> dict[str, Any]:
        """Opens the disk of a restored VM for writing, in the first mode that works."""
        if self._begun:
            raise NotReady("writer.open came before")
        self._begun = True
        self._idle.clear()
        request = params.request()
        steps = self._steps = Steps(**params.steps.model_dump())

        def work() -> Opened:
            try:
                return self._keep(Opening(self._config, self._dialer, self._stop, steps=steps).writer(request))
            finally:
                self._idle.set()

        opened = await background(work)
        return {
            "capacity": opened.disk.capacity,
            "mode": opened.mode,
            "host": opened.host,
            "failed_over": opened.failed_over,
        }

    async def write(self, link: DataLink, workers: int, report: Report) -> dict[str, Any]:
        """Writes everything that the repository's mover sends; reports progress."""
        opened = self._opened
        if opened is None or self._pipeline is not None:
            raise NotReady("writer.write before writer.open, or a second time")
        step = self._steps.of(opened.mode)
        pipeline = self._pipeline = WritePipeline(opened.disk, link, step=step, workers=workers)
        work = background(pipeline.run)
        try:
            while not (await asyncio.wait([work], timeout=PROGRESS))[0]:
                await report({"written": pipeline.written, "passed": pipeline.passed, "total": opened.disk.capacity})
            result = work.result()
            await background(opened.disk.close)  # a disk that cannot be detached is a failed restore
        except BaseException as exc:
            pipeline.stop()
            await asyncio.shield(background(self.close))
            self._events.step(step, "failed", str(exc), code=getattr(exc, "code", "cancelled"))
            raise
        self._events.step(step, "end", bytes=result["written"])
        return result

    def close(self) -> None:
        """Ends writing and gives the disk back (HotAdd: detaches it). Blocking; never raises."""
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
                self._events.note(exc.message, step=exc.step, code=exc.code)

    def _keep(self, opened: Opened) -> Opened:
        with self._lock:
            if not self._closed:
                self._opened = opened
                return opened
        opened.disk.close()
        raise Stopped("the task was stopped", step=self._steps.of(opened.mode))
