# SPDX-License-Identifier: MIT
"""The state of one task in a Data Mover: rules, data link, and the open source, target or restore.

Methods are coroutines; everything that blocks runs in threads. Order: `rules`, then the data link, then open, then read
or commit; out of order is `NotReady`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.errors import InputError, VadplabError
from engine.events import EventLog
from engine.modes.network import MODES, NetworkSession, NetworkSource
from engine.modes.ticket import request_ticket
from engine.mover import datalink, protocol
from engine.mover.background import background
from engine.mover.datalink import DataLink, DataListener
from engine.mover.errors import NotReady
from engine.mover.restore_pipeline import send_disk
from engine.mover.source_pipeline import Rate, SourcePipeline
from engine.mover.target_pipeline import TargetPipeline
from engine.mover.throttle import Throttle
from engine.rpc.identity import Identity
from engine.store.restore import PointDisk
from engine.vsphere import VSphere

LINK_DEADLINE = 120.0
STREAM_DEADLINE = 120.0
PROGRESS = 0.5

Report = Callable[[dict[str, Any]], Awaitable[None]]


class UnsupportedMode(InputError):
    """This version of the engine does not have that transport mode."""

    code = "mode.unsupported"
    exit_code = 1
    symptom = "mode not supported"
    advice = "Use nbd or nbdssl."


class MoverTask:
    """One task. `close` gives everything back and may be called at any time."""

    def __init__(self, config: EngineConfig, identity: Identity, events: EventLog, role: protocol.Role) -> None:
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
        self._session: NetworkSession | None = None
        self._source: NetworkSource | None = None
        self._pipeline: SourcePipeline | None = None
        self._target: TargetPipeline | None = None
        self._disk: PointDisk | None = None
        self._restore: asyncio.Future[dict[str, int]] | None = None

    # Step 6

    def set_rules(self, rules: protocol.Rules) -> None:
        """Takes the manager's rules; the throttle also changes while data flows."""
        self.rules = rules
        self._throttle.set_rate(rules.throttle)

    # Step 7

    async def data_listen(self) -> dict[str, Any]:
        """Listens for the other mover; gives port and token."""
        self._need(self._link is None, "the data link exists already")
        listener = self._listener = DataListener(self.config.listen, self.config.mover_ports, self.identity)
        silence = self.rules.silence

        def accept() -> DataLink:
            link, _ = listener.accept(deadline=LINK_DEADLINE, stop=self._stop, step="7", welcome={}, silence=silence)
            return self._opened(link)

        self._link = background(accept)
        return {"port": listener.port, "token": listener.token}

    async def data_connect(self, params: protocol.DataConnect) -> None:
        """Connects to the other mover."""
        self._need(self._link is None, "the data link exists already")
        self.events.step("7", "begin", f"Data Mover connects to {params.name}:{params.port}")
        silence = self.rules.silence

        def connect() -> DataLink:
            connection = self.dialer.connect(params.host, params.port, step="7", name=params.name)
            link, _ = datalink.connect(
                connection, self.identity, expect=params.name, token=params.token, step="7", silence=silence
            )
            self._dialed = link
            return self._opened(link)

        work = background(connect)
        try:
            await asyncio.shield(work)
        except VadplabError as exc:
            self.events.step("7", "failed", exc.message, code=exc.code)
            raise
        self._link = work
        self.events.step("7", "end")

    # Steps 18, 19, 20c, 21 on the proxy

    async def source_open(self, params: protocol.SourceOpen) -> dict[str, Any]:
        """Logs in, takes a ticket, reads the configuration file on 902, opens the disk on the same connection."""
        self._need(self.role == "source" and self._source is None, "not a source, or opened already")
        if params.mode not in MODES:
            raise UnsupportedMode(f"transport mode {params.mode} is not supported", step="17")
        return await background(lambda: self._open_network(params))

    async def source_read(self, report: Report) -> dict[str, Any]:
        """Reads the whole disk and sends it over the data link; reports progress."""
        source, link = self._source, await self._ready_link()
        if source is None:
            raise NotReady("source.read before source.open")
        link.step = "21"
        self.events.use(link.route.attempt, step="21")
        self.events.step("21", "begin", f"blocks go to {link.route.responder}:{link.route.port}")
        pipeline = self._pipeline = SourcePipeline(
            source,
            link,
            throttle=self._throttle,
            workers=self.rules.workers,
            level=self.rules.compression.level,
            cluster_bits=self.rules.cluster_bits,
        )
        work = background(pipeline.run)
        rate = Rate()
        try:
            while not (await asyncio.wait([work], timeout=PROGRESS))[0]:
                counts = pipeline.counts
                await report(
                    {"read": counts.passed, "total": counts.total, "sent": counts.sent, "rate": rate.of(counts.read)}
                )
            result = work.result()
        except BaseException as exc:
            pipeline.stop()
            await asyncio.shield(background(self._abandon_source))
            for step in ("20c", "21"):
                self.events.step(step, "failed", str(exc), code=getattr(exc, "code", "cancelled"))
            raise
        for step in ("20c", "21"):
            self.events.step(step, "end", bytes=result["read" if step == "20c" else "sent"])
        await background(self._finish_source)
        return result

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
            return opened

        self._target = await background(lambda: TargetPipeline(folder, params.file, params.size, blocking))

    async def target_commit(self, params: protocol.TargetCommit, report: Report) -> dict[str, Any]:
        """Waits for the end of the stream, finishes and verifies the disk; reports that it is alive meanwhile."""
        target = self._target
        if target is None:
            raise NotReady("target.commit before target.open")
        work = background(lambda: target.commit(STREAM_DEADLINE))
        while not (await asyncio.wait([work], timeout=PROGRESS))[0]:
            await report({"stored": target.disk.stored, "total": target.disk.size})
        stored = work.result()
        if params.root is not None and params.root != stored.root:
            raise NotReady("the source reports another root digest than it sent", step="21")
        return stored.to_dict()

    # Restore

    async def restore_open(self, params: protocol.RestoreOpen) -> dict[str, Any]:
        """Opens a disk of a visible restore point and waits for the console that brings the token."""
        self._need(self.role == "restore" and self._restore is None, "not a restore, or opened already")
        folder = self._inside_repository(params.folder)
        disk = self._disk = await background(lambda: PointDisk(folder, params.disk))
        listener = self._listener = DataListener(self.config.listen, self.config.mover_ports, self.identity)
        silence = self.rules.silence

        def serve() -> dict[str, int]:
            link, _ = listener.accept(
                deadline=LINK_DEADLINE, stop=self._stop, step="r3", welcome={"size": disk.size}, silence=silence
            )
            with disk:
                return send_disk(disk, link)

        self._restore = background(serve)
        return {"port": listener.port, "token": listener.token, "size": disk.size}

    async def restore_wait(self) -> dict[str, Any]:
        """Returns when the console has written and synced the whole disk."""
        if self._restore is None:
            raise NotReady("restore.wait before restore.open")
        return dict(await asyncio.shield(self._restore))

    # End

    async def close(self) -> None:
        """Stops what runs, closes connections, removes what was not committed; never raises, takes a few seconds at most."""
        self._stop.set()
        await asyncio.wait([background(self._close)], timeout=5.0)

    def _close(self) -> None:
        if self._pipeline is not None:
            self._pipeline.stop()
        self._abandon_source()
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

    def _open_network(self, params: protocol.SourceOpen) -> dict[str, Any]:
        mode = "nbdssl" if params.mode == "nbdssl" else "nbd"
        events, keylog = self.events, self.config.keylog
        with _step(events, "18", f"log in to {params.vcenter.name} and ask for a ticket"):
            vsphere = VSphere.login(self.dialer, step="18", keylog=keylog, **params.vcenter.model_dump())
            try:
                ticket = request_ticket(vsphere, params.vm.moref, step="18")
            finally:
                with vsphere.at("18"):
                    vsphere.logout()
        name = next((n for n, address in self.config.resolver.items() if address == ticket.host), ticket.host)
        with _step(events, "19", f"connect to {name}:{ticket.port} and read {params.vmx}"):
            session = NetworkSession.connect(self.dialer, ticket, mode, name=name, keylog=keylog)  # type: ignore[arg-type]
            self._session = session
            vmx = session.read_config(params.vmx)
        self.events.step("20c", "begin", f"read {params.disk.path} from {name}:{ticket.port} by {mode}")
        try:
            self._source = session.open_disk(params.disk.path, params.disk.capacity)
        except VadplabError as exc:
            events.step("20c", "failed", exc.message, code=exc.code)
            raise
        return {"vmx": vmx, "capacity": self._source.capacity, "mode": mode, "host": name}

    def _opened(self, link: DataLink) -> DataLink:
        if self.role == "source":
            link.start_ticks()
        return link

    def _abandon_source(self) -> None:
        for end in (self._source, self._session):
            if end is not None:
                end.close()

    def _finish_source(self) -> None:
        self._abandon_source()
        link = self._link
        if link is not None:
            link.result().close()
        self._note_bytes()

    def _note_bytes(self) -> None:
        """The side that opened the link writes its totals, once."""
        link, self._dialed = self._dialed, None
        if link is not None:
            self.events.emit(
                "bytes", step=link.step, attempt=link.route.attempt, sent=link.sent, received=link.received
            )

    async def _ready_link(self) -> DataLink:
        if self._link is None:
            raise NotReady("source.read before data.listen or data.connect")
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


@contextlib.contextmanager
def _step(events: EventLog, step: str, text: str) -> Any:
    events.step(step, "begin", text)
    try:
        yield
    except VadplabError as exc:
        exc.step = exc.step or step
        events.step(step, "failed", exc.message, code=exc.code)
        raise
    events.step(step, "end")
