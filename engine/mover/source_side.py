# SPDX-License-Identifier: MIT
"""The proxy's side of a backup task: opens the disk (steps 18 to 20) and sends it (21)."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from engine.config import EngineConfig
from engine.dialer import Dialer
from engine.modes.opening import Opening, Steps
from engine.modes.source import Source
from engine.mover import comparison, protocol
from engine.mover.background import Report, background, reported
from engine.mover.datalink import DataLink
from engine.mover.held_disk import HeldDisk
from engine.mover.source_pipeline import Rate, SourcePipeline
from engine.mover.throttle import Throttle

STEPS = Steps()


class SourceSide:
    """One disk that is read. `close` may be called at any time."""

    def __init__(self, config: EngineConfig, dialer: Dialer, stop: threading.Event) -> None:
        self._events = dialer.events
        self._opening = Opening(config, dialer, stop)
        self._held: HeldDisk[Source] = HeldDisk(dialer.events)

    async def open(self, params: protocol.SourceOpen) -> dict[str, Any]:
        """Opens the disk in the first mode that works; gives what `source.open` answers."""
        request = params.request()
        opened = await self._held.open(lambda: self._opening.source(request), STEPS)
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
        opened = self._held.take()
        link.step = "21"
        self._events.use(link.route.attempt, step="21")
        self._events.step("21", "begin", f"blocks go to {link.route.responder}:{link.route.port}")
        steps = (STEPS.of(opened.mode), "21")
        rate = Rate()
        try:
            parent = await background(lambda: comparison.fetch(link)) if params.compare else None
            pipeline = SourcePipeline(
                opened.disk,
                link,
                throttle=throttle,
                workers=rules.workers,
                level=rules.compression.level,
                ranges=params.extents(opened.disk.capacity),
                incremental=params.incremental,
                comparison=comparison.Comparison(parent) if parent else None,
            )
            self._held.moved_by(pipeline)

            def state() -> dict[str, Any]:
                counts = pipeline.counts
                return {
                    "read": counts.passed,
                    "total": counts.total,
                    "sent": counts.sent,
                    "rate": rate.of(counts.read),
                }

            result = await reported(background(pipeline.run), report, state)
        except BaseException as exc:
            await asyncio.shield(background(self.close))
            for step in steps:
                self._events.step(step, "failed", str(exc), code=getattr(exc, "code", "cancelled"))
            raise
        for step in steps:
            self._events.step(step, "end", bytes=result["sent" if step == "21" else "read"])
        await background(self.close)
        return result

    def close(self) -> None:
        """Ends reading and gives the disk back. Blocking; never raises."""
        self._held.close()
