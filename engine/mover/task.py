# SPDX-License-Identifier: MIT
"""The state of one task in a Data Mover: rules, data link, and the open source, target, reader or writer.

Methods are coroutines; everything that blocks runs in threads. Order: `rules`, then the data link, then open, then read
or commit; out of order is `NotReady`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import EngineConfig
from engine.errors import InputError, VadplabError
from engine.events import EventLog
from engine.mover import comparison, datalink, protocol
from engine.mover.background import Report, background, reported
from engine.mover.datalink import DataLink, DataListener
from engine.mover.errors import DataProtocol, NotReady
from engine.mover.reader_pipeline import answer_reads, send_disk
from engine.mover.roles import Role
from engine.mover.target_pipeline import TargetPipeline
from engine.mover.throttle import Throttle
from engine.rpc.identity import Identity
from engine.store.point_disk import PointDisk
from engine.store.view import DiskView

if TYPE_CHECKING:
    from engine.mover.source_side import SourceSide
    from engine.mover.writer_side import WriterSide

LINK_DEADLINE = 120.0
STREAM_DEADLINE = 120.0
CLOSE_DEADLINE = 20.0


class MoverTask:
    """One task. `close` gives everything back and may be called at any time."""

    def __init__(self, config: EngineConfig, identity: Identity, events: EventLog, role: Role) -> None:
        self.config = config
        self.identity = identity
        self.events = events
        self.role = role
        self.dialer = config.dialer(events)
        self.rules = protocol.Rules()
        self._throttle = Throttle(None)
        self._stop = threading.Event()
        self._listener: DataListener | None = None
        self._dialed: DataLink | None = None
        self._link: asyncio.Future[DataLink] | None = None
        self._source: SourceSide | None = None
        self._writer: WriterSide | None = None
        self._target: TargetPipeline | None = None
        self._disk: PointDisk | DiskView | None = None
        self._reading: asyncio.Future[dict[str, int]] | None = None

    # Step 6

    def set_rules(self, rules: protocol.Rules) -> None:
        """Takes the manager's rules; the throttle also changes while data flows."""
        self.rules = rules
        self._throttle.set_rate(rules.throttle)

    # Step 7

    async def data_listen(self, params: protocol.DataListen) -> dict[str, Any]:
        """Listens for the other mover; gives port and token."""
        self._need(self._link is None, "the data link exists already")
        listener = self._listener = DataListener(self.config.listen, self.config.mover_ports, self.identity)
        silence, step = self.rules.silence, params.as_step

        def accept() -> DataLink:
            link, _ = listener.accept(deadline=LINK_DEADLINE, stop=self._stop, step=step, welcome={}, silence=silence)
            return self._opened(link)

        self._link = background(accept)
        return {"port": listener.port, "token": listener.token}

    async def data_connect(self, params: protocol.DataConnect) -> None:
        """Connects to the other mover."""
        self._need(self._link is None, "the data link exists already")
        step = params.as_step
        self.events.step(step, "begin", f"Data Mover connects to {params.name}:{params.port}")
        silence = self.rules.silence

        def connect() -> DataLink:
            connection = self.dialer.connect(params.host, params.port, step=step, name=params.name)
            link, _ = datalink.connect(
                connection, self.identity, expect=params.name, token=params.token, step=step, silence=silence
            )
            self._dialed = link
            return self._opened(link)

        work = background(connect)
        try:
            await asyncio.shield(work)
        except VadplabError as exc:
            self.events.step(step, "failed", exc.message, code=exc.code)
            raise
        self._link = work
        self.events.step(step, "end")

    # Steps 18 to 21 on the proxy

    async def source_open(self, params: protocol.SourceOpen) -> dict[str, Any]:
        """Logs in, takes a ticket, reads the configuration file on 902, opens the disk in the first mode that works."""
        self._need(self.role == "source", "not a source")
        if self._source is None:
            # A repository's mover never needs these modules, which bring the vSphere library: it starts without them.
            from engine.mover.source_side import SourceSide

            self._source = SourceSide(self.config, self.dialer, self._stop)
        return await self._source.open(params)

    async def source_read(self, params: protocol.SourceRead, report: Report) -> dict[str, Any]:
        """Reads the disk, or what of it is asked for, and sends it over the data link; reports progress."""
        self._need(self.role == "source", "not a source")
        link = await self._ready_link("source.read")
        if self._source is None:
            raise NotReady("source.read before source.open")
        result = await self._source.read(params, link, self._throttle, self.rules, report)
        link.close()
        self._note_bytes()
        return result

    # Steps r7 to r10 on the proxy

    async def writer_open(self, params: protocol.WriterOpen) -> dict[str, Any]:
        """Opens the disk of a restored VM for writing."""
        self._need(self.role == "writer", "not a writer")
        if self._writer is None:
            from engine.mover.writer_side import WriterSide

            self._writer = WriterSide(self.config, self.dialer, self._stop)
        return await self._writer.open(params)

    async def writer_write(self, report: Report) -> dict[str, Any]:
        """Writes what the repository's Data Mover sends; reports progress."""
        self._need(self.role == "writer", "not a writer")
        link = await self._ready_link("writer.write")
        if self._writer is None:
            raise NotReady("writer.write before writer.open")
        try:
            return await self._writer.write(link, self.rules.workers, report)
        finally:
            self._note_bytes()

    # Step 21 on the repository

    async def target_open(self, params: protocol.TargetOpen) -> None:
        """Begins to receive into a disk of a restore point in the making."""
        self._need(self.role == "target" and self._target is None, "not a target, or opened already")
        folder = self._inside_repository(params.folder)
        link = self._link
        if link is None:
            raise NotReady("target.open before data.listen or data.connect")
        loop = asyncio.get_running_loop()

        async def wait() -> DataLink:
            return await asyncio.shield(link)

        def blocking() -> DataLink:
            opened = asyncio.run_coroutine_threadsafe(wait(), loop).result(LINK_DEADLINE + 1)
            opened.step = "21"
            comparison.answer(opened, parent.digests if parent is not None else None)
            return opened

        parent = None
        if params.parent is not None:
            below, key = self._inside_repository(params.parent.folder), params.parent.disk
            parent = await background(lambda: PointDisk(below, key))
        try:
            self._target = await background(
                lambda: TargetPipeline(folder, params.file, params.size, blocking, parent=parent, host=self.config.name)
            )
        except BaseException:
            if parent is not None:
                parent.close()
            raise

    async def target_commit(self, params: protocol.TargetCommit, report: Report) -> dict[str, Any]:
        """Waits for the end of the stream, finishes and verifies the disk; reports that it is alive meanwhile."""
        target = self._target
        if target is None:
            raise NotReady("target.commit before target.open")
        work = background(lambda: target.commit(STREAM_DEADLINE))
        stored = await reported(work, report, lambda: {"stored": target.disk.stored, "total": target.disk.size})
        if params.root is not None and params.root != target.root:
            raise DataProtocol("the source reports another root digest than it sent", step="21")
        return stored.to_dict()

    # Steps r3 and r6 to r10 on the repository

    async def reader_open(self, params: protocol.ReaderOpen) -> dict[str, Any]:
        """Opens a disk of a visible restore point and waits for the one that brings the token; or uses the link that is there."""
        self._need(self.role == "reader" and self._reading is None, "not a reader, or opened already")
        folder = self._inside_repository(params.folder)
        kind = DiskView if params.reads else PointDisk
        disk = self._disk = await background(lambda: kind(folder, params.disk))

        def send(link: DataLink) -> dict[str, int]:
            with disk:
                if isinstance(disk, DiskView):
                    return answer_reads(disk, link, step=params.as_step)
                return send_disk(disk, link, step=params.as_step)

        if self._link is not None:
            link = await asyncio.shield(self._link)
            self._reading = background(lambda: send(link))
            return {"size": disk.size}
        listener = self._listener = DataListener(self.config.listen, self.config.mover_ports, self.identity)
        silence = self.rules.silence

        def serve() -> dict[str, int]:
            link, _ = listener.accept(
                deadline=LINK_DEADLINE,
                stop=self._stop,
                step=params.as_step,
                welcome={"size": disk.size},
                silence=silence,
            )
            return send(link)

        self._reading = background(serve)
        return {"port": listener.port, "token": listener.token, "size": disk.size}

    async def reader_wait(self) -> dict[str, Any]:
        """Returns when the receiver has written and synced the whole disk, or has ended its reads."""
        if self._reading is None:
            raise NotReady("reader.wait before reader.open")
        result = dict(await asyncio.shield(self._reading))
        self._note_bytes()
        return result

    # End

    async def close(self) -> None:
        """Stops what runs, gives disks back, closes connections, removes what was not committed; never raises.

        It takes a second as a rule; a disk that vCenter is slow to detach gets more time.
        """
        self._stop.set()
        await asyncio.wait([background(self._close)], timeout=CLOSE_DEADLINE)

    def _close(self) -> None:
        for side in (self._source, self._writer):
            if side is not None:
                side.close()
        link = self._link
        if link is not None and link.done() and not link.cancelled() and link.exception() is None:
            link.result().close()
        for end in (self._listener, self._disk):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()
        if self._target is not None:
            self._target.stop()
        self._note_bytes()

    def _opened(self, link: DataLink) -> DataLink:
        if self.role == "source":
            link.start_ticks()
        return link

    def _note_bytes(self) -> None:
        """The side that opened the link writes its totals, once."""
        link, self._dialed = self._dialed, None
        if link is not None:
            self.events.emit(
                "bytes", step=link.step, attempt=link.route.attempt, sent=link.sent, received=link.received
            )

    async def _ready_link(self, method: str) -> DataLink:
        if self._link is None:
            raise NotReady(f"{method} before data.listen or data.connect")
        return await asyncio.shield(self._link)

    def _inside_repository(self, folder: str) -> Path:
        root = self.config.repository
        path = Path(folder).resolve()
        if root is None or not path.is_relative_to(root.resolve()) or not path.is_dir():
            raise InputError(f"{folder}: not a folder of this machine's repository")
        return path

    def _need(self, condition: bool, text: str) -> None:
        if not condition:
            raise NotReady(text)
