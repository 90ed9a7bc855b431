# SPDX-License-Identifier: MIT
"""The proxy's side of a restore into a VM: receives checked blocks from the repository and writes them into the VM's disk."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from engine.config import EngineConfig
from engine.dialer import Dialer
from engine.modes.opening import Opening, Steps
from engine.modes.writer import DiskWriter
from engine.mover import protocol
from engine.mover.background import Report, background, reported
from engine.mover.datalink import DataLink
from engine.mover.held_disk import HeldDisk
from engine.mover.writer_pipeline import WriterPipeline


class WriterSide:
    """One disk that is written. `close` may be called at any time."""

    def __init__(self, config: EngineConfig, dialer: Dialer, stop: threading.Event) -> None:
        self._events = dialer.events
        self._config = config
        self._dialer = dialer
        self._stop = stop
        self._steps = Steps()
        self._held: HeldDisk[DiskWriter] = HeldDisk(dialer.events)

    async def open(self, params: protocol.WriterOpen) -> dict[str, Any]:
        """Opens the disk of a restored VM for writing, in the first mode that works."""
        request = params.request()
        steps = self._steps = Steps(**params.steps.model_dump())
        opening = Opening(self._config, self._dialer, self._stop, steps=steps)
        opened = await self._held.open(lambda: opening.writer(request), steps)
        return {
            "capacity": opened.disk.capacity,
            "mode": opened.mode,
            "host": opened.host,
            "failed_over": opened.failed_over,
        }

    async def write(self, link: DataLink, workers: int, report: Report) -> dict[str, Any]:
        """Writes everything that the repository's mover sends; reports progress."""
        opened = self._held.take()
        step = self._steps.of(opened.mode)
        pipeline = WriterPipeline(opened.disk, link, step=step, workers=workers)
        self._held.moved_by(pipeline)

        def state() -> dict[str, Any]:
            return {"written": pipeline.written, "passed": pipeline.passed, "total": opened.disk.capacity}

        try:
            result = await reported(background(pipeline.run), report, state)
            await background(opened.disk.close)  # a disk that cannot be detached is a failed restore
        except BaseException as exc:
            await asyncio.shield(background(self.close))
            self._events.step(step, "failed", str(exc), code=getattr(exc, "code", "cancelled"))
            raise
        self._events.step(step, "end", bytes=result["written"])
        return result

    def close(self) -> None:
        """Ends writing and gives the disk back. Blocking; never raises."""
        self._held.close()
