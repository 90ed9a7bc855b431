# SPDX-License-Identifier: MIT
"""Steps 17 to 20 of one task on the proxy: log in, ticket, configuration file, and the disk in the first mode that works.

The order of modes is the caller's; `auto` stands for what this proxy can do: Direct SAN, HotAdd, then Network (NBDSSL). Each
*failover* from a mode to the next is a note in the events and in the result, with the reason. Login, ticket and the
connection to the host (steps 18 and 19) are common to all modes: when they fail, no mode can work.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from engine.config import EngineConfig
from engine.dialer import Dialer
from engine.errors import InputError, VadplabError
from engine.events import EventLog
from engine.modes import hotadd, san
from engine.modes.errors import ModeNotConfigured, OpeningStopped, UnsupportedMode
from engine.modes.iscsi.session import Login
from engine.modes.layout import LayoutReader, MapFile
from engine.modes.names import AUTO, HOTADD, MODES, NBDSSL, NETWORK, SAN, configured, usable
from engine.modes.network import NetworkSession
from engine.modes.nfc.aio import Packing
from engine.modes.nfc.errors import HostBusy
from engine.modes.source import Source
from engine.modes.ticket import request_ticket
from engine.modes.writer import DiskWriter
from engine.vsphere import VSphere

BUSY_DEADLINE = 120.0
"""Seconds for which a host that has no room for another connection is asked again."""
_BUSY_PAUSES = (0.5, 10.0)

D = TypeVar("D", Source, DiskWriter)
"""A disk that is read, or one that is written."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to open. `vcenter`: arguments of `VSphere.login`. `path`: datastore path of the disk; `vmx` likewise, None: not read.

    `chap`: name and secret that take the place of the configured ones. `packing`: compression on the wire in Network mode.
    """

    modes: tuple[str, ...]
    failover: bool
    vcenter: dict[str, Any] = field(repr=False)
    vm: str
    snapshot: str | None
    key: int
    path: str
    capacity: int
    vmx: str | None
    chap: tuple[str, str] | None = field(default=None, repr=False)
    packing: Packing = Packing.NONE


@dataclass(frozen=True, slots=True)
class Steps:
    """Ids of the steps in events and errors."""

    choose: str = "17"
    login: str = "18"
    connect: str = "19"
    san: str = "20a"
    hotadd: str = "20b"
    network: str = "20c"

    def of(self, mode: str) -> str:
        """The step that moves the data in that mode."""
        return {SAN: self.san, HOTADD: self.hotadd}.get(mode, self.network)


@dataclass(frozen=True, slots=True)
class Opened(Generic[D]):
    """An open disk, the mode, the host's name, the configuration file's text, and failovers on the way."""

    disk: D
    mode: str
    host: str
    vmx: str | None
    failed_over: list[dict[str, str]]


def expand(modes: Sequence[str], config: EngineConfig) -> list[str]:
    """The modes to try, in order, without repetitions; `auto` becomes what this proxy is configured for.

    Raises:
        UnsupportedMode: one is not known. InputError: there is none.
    """
    found: list[str] = []
    for mode in modes:
        if mode == AUTO:
            found += usable(AUTO, configured(config))
        elif mode in MODES:
            found.append(mode)
        else:
            raise UnsupportedMode(f"transport mode {mode} is not supported", step="17")
    if not found:
        raise InputError("no transport mode is given")
    return list(dict.fromkeys(found))


class Opening:
    """Opens one disk. Blocking; `stop` ends waits."""

    def __init__(
        self,
        config: EngineConfig,
        dialer: Dialer,
        stop: threading.Event,
        *,
        layout: LayoutReader | None = None,
        steps: Steps | None = None,
    ) -> None:
        self._config = config
        self._dialer = dialer
        self._events: EventLog = dialer.events
        self._stop = stop
        self._layout: LayoutReader = layout or MapFile()
        self._steps = steps or Steps()
        self._vsphere: VSphere | None = None
        self._session: NetworkSession | None = None
        self._wants_luns = False
        self._luns: list[str] = []
        self._host = ""
        self._vmx: str | None = None

    def source(self, request: Request) -> Opened[Source]:
        """Opens the snapshot's disk for reading. Raises the error of step 18 or 19, or of the last mode that was tried."""
        modes = expand(request.modes, self._config)
        variety = next((mode for mode in modes if mode in NETWORK), NBDSSL)
        if len(modes) == 1 or not request.failover:
            self._check_configured(modes[0])  # nothing else will be tried: no connection is needed to know
        with self._held():
            self._wants_luns = SAN in modes
            self._connect(request, variety)
            return self._first(modes, request, self._open_source)

    def writer(self, request: Request) -> Opened[DiskWriter]:
        """Opens a disk of a restored VM for writing: `hotadd`, `nbd` or `nbdssl`."""
        modes = [mode for mode in expand(request.modes, self._config) if mode != SAN]
        if not modes:
            raise UnsupportedMode("Direct SAN mode does not write", step=self._steps.choose)
        if len(modes) == 1 or not request.failover:
            self._check_configured(modes[0])
        with self._held():
            with self._step(self._steps.login, f"log in to {request.vcenter['name']}"):
                self._log_in(request)
            return self._first(modes, request, self._open_writer)

    # Mode by mode

    def _first(self, modes: list[str], request: Request, open_disk: Callable[[str, Request], D]) -> Opened[D]:
        failed: list[dict[str, str]] = []
        for number, mode in enumerate(modes):
            step = self._steps.of(mode)
            if self._stop.is_set():
                raise OpeningStopped("the task was stopped", step=step)
            self._events.step(step, "begin", f"open {request.path} by {mode}", mode=mode)
            try:
                disk = open_disk(mode, request)
            except VadplabError as exc:
                exc.step = exc.step or step
                self._events.step(step, "failed", exc.message, code=exc.code)
                if not request.failover or number + 1 == len(modes) or self._stop.is_set():
                    raise
                failed.append({"mode": mode, "code": exc.code, "message": exc.message})
                self._events.note(
                    f"failover from {mode} to {modes[number + 1]}: {exc.message}",
                    step=self._steps.choose,
                    mode=mode,
                    to=modes[number + 1],
                    code=exc.code,
                )
                continue
            return Opened(disk, mode, self._host, self._vmx, failed)
        raise AssertionError("expand gives at least one mode")

    def _open_source(self, mode: str, request: Request) -> Source:
        if mode == SAN:
            return self._open_san(request)
        if mode == HOTADD:
            return self._open_hotadd(request, hotadd.open_source)
        session = self._session
        if session is None or session.mode != mode:
            session = self._connect(request, mode)
        source = session.open_disk(request.path, request.capacity, step=self._steps.network, packing=request.packing)
        self._session = None  # the source closes it
        return source

    def _open_writer(self, mode: str, request: Request) -> DiskWriter:
        if mode == HOTADD:

            def open_disk(*arguments: Any) -> DiskWriter:
                return hotadd.open_writer(*arguments, step=self._steps.hotadd)

            return self._open_hotadd(request, open_disk)
        session = self._connect(request, mode, write_disk=request.key)
        writer = session.open_writer(request.path, request.capacity, step=self._steps.network)
        self._session = None
        return writer

    def _open_san(self, request: Request) -> Source:
        self._check_configured(SAN)
        settings = self._config.san
        assert self._session is not None and settings is not None
        layout = self._layout.read(self._session, request.path, request.capacity)
        chap = request.chap
        if chap is None and settings.chap is not None:
            chap = settings.chap.username, _first_line(settings.chap.secret_file.read_text, self._steps.san)
        login = Login(settings.initiator, *(chap or (None, None)))
        portals = san.Portals(tuple(map(san.parse_portal, settings.portals)), login)
        return san.open_source(self._dialer, portals, layout, self._luns)

    def _open_hotadd(self, request: Request, open_disk: Callable[..., D]) -> D:
        settings, step = self._config.proxy, self._steps.hotadd
        self._check_configured(HOTADD)
        vsphere = self._vsphere
        assert vsphere is not None and settings is not None
        identity = hotadd.snapshot_identity(vsphere, request.snapshot, request.key, step=step)
        proxy = settings.vm_uuid, settings.devices
        disk = open_disk(vsphere, proxy, request.path, request.capacity, identity, self._events)
        self._vsphere = None  # the disk keeps it until it is detached
        return disk

    def _check_configured(self, mode: str) -> None:
        missing = None
        if mode == SAN and self._config.san is None:
            missing = "has no SAN portals in its configuration"
        elif mode == HOTADD and self._config.proxy is None:
            missing = "is not set up as a VM in its configuration"
        if missing:
            host = self._config.name
            raise ModeNotConfigured(f"{host} {missing}", step=self._steps.of(mode), host=host)

    # Steps 18 and 19

    def _log_in(self, request: Request) -> VSphere:
        step = self._steps.login
        if self._vsphere is None:
            vsphere = VSphere.login(self._dialer, step=step, keylog=self._config.keylog, **request.vcenter)
            self._vsphere = vsphere
            if self._wants_luns:
                datastore = request.path.partition("]")[0].removeprefix("[")
                self._luns = vsphere.datastore_luns(request.vm, datastore, step=step)
        return self._vsphere

    def _connect(self, request: Request, mode: str, write_disk: int | None = None) -> NetworkSession:
        """Steps 18 and 19. A host that has no room is asked again, each time with a new ticket."""
        if self._session is not None:
            self._session.close()
            self._session = None
        steps, end, pause = self._steps, time.monotonic() + BUSY_DEADLINE, _BUSY_PAUSES[0]
        while True:
            with self._step(steps.login, f"log in to {request.vcenter['name']} and ask for a ticket"):
                ticket = request_ticket(self._log_in(request), request.vm, step=steps.login, write_disk=write_disk)
            self._host = self._dialer.name_of(ticket.host)
            reading = f" and read {request.vmx}" if request.vmx else ""
            try:
                with self._step(steps.connect, f"connect to {self._host}:{ticket.port}{reading}"):
                    session = self._session = NetworkSession.connect(
                        self._dialer,
                        ticket,
                        mode,  # type: ignore[arg-type]
                        name=self._host,
                        step=steps.connect,
                        keylog=self._config.keylog,
                    )
                    if request.vmx is not None and self._vmx is None:
                        self._vmx = session.read_config(request.vmx)
                return session
            except HostBusy as exc:
                if time.monotonic() + pause > end or self._stop.wait(pause):
                    raise
                self._events.note(f"{exc.message}: asking again", step=steps.connect, pause=pause)
                pause = min(2 * pause, _BUSY_PAUSES[1])

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """What no open disk has taken over is given back at the end."""
        try:
            yield
        finally:
            session, self._session = self._session, None
            if session is not None:
                session.close()
            vsphere, self._vsphere = self._vsphere, None
            if vsphere is not None:
                with vsphere.at(self._steps.login):
                    vsphere.logout()

    @contextlib.contextmanager
    def _step(self, step: str, text: str) -> Iterator[None]:
        self._events.step(step, "begin", text)
        try:
            yield
        except VadplabError as exc:
            exc.step = exc.step or step
            self._events.step(step, "failed", exc.message, code=exc.code)
            raise
        self._events.step(step, "end")


def _first_line(read: Callable[[], str], step: str) -> str:
    try:
        return (read().splitlines() or [""])[0]
    except (OSError, UnicodeDecodeError) as exc:
        raise ModeNotConfigured(f"the CHAP secret cannot be read: {type(exc).__name__}", step=step) from exc
