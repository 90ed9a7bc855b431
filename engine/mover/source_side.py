# SPDX-License-Identifier: MIT
"""The proxy's side of a backup task: opens the disk (steps 18 to 20) and sends it (21)."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from engine.config import EngineConfig
from engine.dialer import Dialer
from engine.errors import VadplabError
from engine.modes.opening import Opened, Opening
from engine.mover import comparison, protocol
from engine.mover.background import background
from engine.mover.datalink import DataLink
from engine.mover.errors import NotReady, Stopped
from engine.mover.source_pipeline import Rate, SourcePipeline
from engine.mover.throttle import Throttle

PROGRESS = 0.5
OPENING_ENDS = 10.0
"""Seconds that the end of the task waits for an open that is under way."""

Report = Callable[[dict[str, Any]], Awaitable[None]]


class SourceSide:
    """One disk that is read. `close` may be called at any time; it also ends an open that is under way."""

    def __init__(self, config: EngineConfig, dialer: Dialer, stop: threading.Event) -> None:
        self._events = dialer.events
        self._opening = Opening(config, dialer, stop)
        self._stop = stop
        self._lock = threading.Lock()
        self._begun = False
        self._idle = threading.Event()
        self._idle.set()
        self._closed = False
        self._opened: Opened | None = None
        self._pipeline: SourcePipeline | None = None

    async def open(self, params: protocol.SourceOpen) -> dict[str, Any]:
        """Opens the disk in the first mode that works; gives what `source.open` answers."""
        if self._begun:
            raise NotReady("source.open came before")
        self._begun = True
        self._idle.clear()
        request = params.request()

        def work() -> Opened:
            try:
                return self._keep(self._opening.source(request))
            finally:
                self._idle.set()

        opened = await background(work)
        return {
            "vmx": opened.vmx,
            "capacity": opened.disk.capacity,
            "mode": opened.mode,
            "host": opened.host,
            "failed_over": opened.failed_over,
        }

    async def read(
        self,
        params: protocol.SourceRead,
        link: DataLink,
        throttle: Throttle,
        rules: protocol.Rules,
        report: Report,
    ) -> dict[str, Any]:
        """Reads what is asked for and sends it over the data link; reports progress."""
        opened = self._opened
        if opened is None or self._pipeline is not None:
            raise NotReady("source.read before source.open, or a second time")
        link.step = "21"
        self._events.use(link.route.attempt, step="21")
        self._events.step("21", "begin", f"blocks go to {link.route.responder}:{link.route.port}")
        steps = (opened.disk.step, "21")
        work: asyncio.Future[dict[str, Any]] | None = None
        try:
            parent = await background(lambda: comparison.fetch(link)) if params.compare else None
            pipeline = self._pipeline = SourcePipeline(
                opened.disk,
                link,
                throttle=throttle,
                workers=rules.workers,
                level=rules.compression.level,
                cluster_bits=rules.cluster_bits,
                ranges=params.extents(opened.disk.capacity),
                incremental=params.incremental,
                comparison=comparison.Comparison(parent, cluster_bits=rules.cluster_bits) if parent else None,
            )
            work = background(pipeline.run)
            await self._report(work, pipeline, report)
            result = work.result()
        except BaseException as exc:
            if self._pipeline is not None:
                self._pipeline.stop()
            await asyncio.shield(background(self.close))
            for step in steps:
                self._events.step(step, "failed", str(exc), code=getattr(exc, "code", "cancelled"))
            raise
        for step in steps:
            self._events.step(step, "end", bytes=result["sent" if step == "21" else "read"])
        await background(self.close)
        return result

    def close(self) -> None:
        """Ends reading and gives the disk back (HotAdd: detaches it). Blocking; never raises."""
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
                self._events.note(exc.message, step=exc.step or opened.disk.step, code=exc.code)

    def _keep(self, opened: Opened) -> Opened:
        with self._lock:
            if not self._closed:
                self._opened = opened
                return opened
        with contextlib.suppress(VadplabError):
            opened.disk.close()
        raise Stopped("the task was stopped", step=opened.disk.step)

    async def _report(self, work: asyncio.Future[Any], pipeline: SourcePipeline, report: Report) -> None:
        rate = Rate()
        while not (await asyncio.wait([work], timeout=PROGRESS))[0]:
            counts = pipeline.counts
            await report(
                {"read": counts.passed, "total": counts.total, "sent": counts.sent, "rate": rate.of(counts.read)}
            )
