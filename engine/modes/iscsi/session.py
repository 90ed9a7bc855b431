# SPDX-License-Identifier: MIT
"""One iSCSI session: login, discovery, SCSI commands, several reads in flight; every wait has a deadline.

libiscsi opens the connection itself, so the attempt's event is written right after its SYN left, with the local address
that the library's socket has; the event says so. After login a thread of the session owns the library's context: nothing
writes into a caller's buffer once its read has failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.dialer import Dialer
from engine.errors import VadplabError, from_oserror
from engine.events import new_id
from engine.modes.errors import SanCredentials, SanCut, SanLoginRefused, SanProtocol, SanReadFailed, SanSilent
from engine.modes.iscsi import library
from engine.modes.iscsi.library import STATUS_CHECK_CONDITION, STATUS_GOOD, Callback

PATIENCE = 30.0
LOGOUT_PATIENCE = 2.0
RETRIES = 3
"""Unit attentions (a LUN that tells of a reset) after which a command is not repeated any more."""
_AUTHENTICATION = 0x0201
_CODE = re.compile(r"\((\d+)\)[^()]*$")
_UNIT_ATTENTION = "SENSE KEY:UNIT_ATTENTION"
_TCP_TOTALS = struct.Struct("@120xQQ")


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in: initiator name, CHAP name and secret (both or none)."""

    initiator: str
    username: str | None = None
    secret: str | None = field(default=None, repr=False)


@dataclass(slots=True, eq=False)
class Command:
    """A SCSI command in flight that reads into `view`."""

    session: Session
    lun: int
    cdb: bytes
    view: memoryview
    done: threading.Event = field(default_factory=threading.Event)
    error: VadplabError | None = None
    tries: int = 0

    def wait(self) -> None:
        """Returns when the buffer is filled. Raises SanReadFailed, SanSilent, SanCut."""
        if not self.done.wait(2 * self.session.patience + 5):  # the session's own watchdog ends it long before
            raise SanSilent(f"{self.session.route}: no answer", **self.session.where)
        if self.error is not None:
            raise self.error


class Session:
    """A session with one portal. Make it with `open`; `target` None: a discovery session."""

    def __init__(self, dialer: Dialer, address: str, port: int, *, step: str, name: str, patience: float) -> None:
        self.patience = patience
        self.attempt = new_id()
        self._lib = library.load()
        self._dialer = dialer
        self._address = address
        self._port = port
        self._step = step
        self._name = name
        self._context: int | None = None
        self._keep: dict[int, tuple[Any, ...]] = {}
        self._in_flight: dict[int, Command] = {}
        self._numbers = 0
        self._callback = Callback(self._finished)
        self._waiting: deque[Command] = deque()
        self._lock = threading.Lock()
        self._failure: VadplabError | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = False
        self._open = False
        self._progress = time.monotonic()
        self._thread: threading.Thread | None = None

    @property
    def where(self) -> dict[str, Any]:
        """Step, host, target and port for errors."""
        return {"step": self._step, "host": self._dialer.events.host, "target": self._name, "port": self._port}

    @property
    def route(self) -> str:
        """`proxy-1 to san:3260`, for messages."""
        return f"{self._dialer.events.host} to {self._name}:{self._port}"

    @classmethod
    def open(
        cls,
        dialer: Dialer,
        portal: tuple[str, int],
        login: Login,
        target: str | None,
        *,
        step: str,
        name: str | None = None,
        patience: float = PATIENCE,
    ) -> Session:
        """Connects and logs in.

        Args:
            portal: host name or address, and port. target: its name; None for a discovery session.
            name: what events and errors call the portal. patience: seconds without progress after which the SAN is gone.

        Raises:
            ConnectError: one subclass per symptom. SanCredentials, SanLoginRefused, SanSilent, SanCut, MissingInitiator.
        """
        host, port = portal
        try:
            address = dialer.resolver.get(host) or socket.gethostbyname(host)
        except OSError as exc:
            where: dict[str, Any] = {"step": step, "host": dialer.events.host, "target": name or host, "port": port}
            raise from_oserror(exc, **where) from exc
        self = cls(dialer, address, port, step=step, name=name or host, patience=patience)
        try:
            self._connect(login, target)
            self._log_in()
        except BaseException:
            self._destroy()
            os.close(self._wake)
            raise
        if target is not None:
            self._thread = threading.Thread(target=self._run, name="iscsi", daemon=True)
            self._thread.start()
        return self

    def discover(self) -> list[tuple[str, list[str]]]:
        """Targets that the portal names, with their portals (a discovery session only)."""
        found: list[tuple[str, list[str]]] = []

        def answer(status: int, data: int | None) -> None:
            if status == STATUS_GOOD:
                found.extend(library.discovered(data))

        self._exchange("discovery", self._lib.iscsi_discovery_async, answer, SanProtocol)
        return found

    def start(self, lun: int, cdb: bytes, view: memoryview) -> Command:
        """Begins a command that reads `len(view)` bytes into `view`. Any thread; raises the session's failure."""
        command = Command(self, lun, cdb, view)
        with self._lock:
            if self._failure is not None:
                raise self._again(self._failure)
            self._waiting.append(command)
            os.eventfd_write(self._wake, 1)
        return command

    def check(self) -> None:
        """Raises the session's failure, if it has one."""
        with self._lock:
            if self._failure is not None:
                raise self._again(self._failure)

    def ask(self, lun: int, cdb: bytes, size: int) -> bytes:
        """Performs a command and gives the `size` bytes of its buffer (zeros where the answer was shorter)."""
        data = bytearray(size)
        self.start(lun, cdb, memoryview(data)).wait()
        return bytes(data)

    def close(self) -> None:
        """Logs out and ends the connection; never raises. Harmless when called twice."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._failure = self._failure or SanCut(f"{self.route}: the session was closed", **self.where)
            os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join(self.patience)
        elif self._context is not None:
            self._log_out()
            self._destroy()
        os.close(self._wake)

    # Opening

    def _connect(self, login: Login, target: str | None) -> None:
        lib = self._lib
        context = self._context = lib.iscsi_create_context(login.initiator.encode())
        if not context:
            raise SanProtocol(f"{self.route}: the initiator library gave no context", **self.where)
        lib.iscsi_set_noautoreconnect(context, 1)
        lib.iscsi_set_session_type(context, library.NORMAL if target is not None else library.DISCOVERY)
        if target is not None:
            lib.iscsi_set_targetname(context, target.encode())
        if login.username is not None and login.secret is not None:
            lib.iscsi_set_initiator_username_pwd(context, login.username.encode(), login.secret.encode())
        begun = time.monotonic()
        connected: list[int] = []
        keep = Callback(lambda _context, status, _data, _private: connected.append(status))
        self._keep[-1] = (keep,)
        refused = lib.iscsi_connect_async(context, f"{self._address}:{self._port}".encode(), keep, None) != 0
        events = self._dialer.events
        events.emit(
            "attempt", step=self._step, attempt=self.attempt, target=self._name, protocol="tcp", local=self._local(),
            remote=[self._address, self._port], written="after the SYN: the iSCSI library opens its connections itself",
        )  # fmt: skip
        number = self._errno() if refused else self._await_connect()
        if not number:
            lib.iscsi_service(context, select.POLLOUT)
        if number or not connected or connected[0] != STATUS_GOOD:
            error = from_oserror(OSError(number, os.strerror(number)) if number else EOFError(), **self.where)
            self._outcome(begun, error.symptom, error.code)
            raise error
        self._outcome(begun, "open", None)
        self._open = True

    def _await_connect(self) -> int:
        """The connection's errno, 0 when it is open."""
        fd = self._lib.iscsi_get_fd(self._context)
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if not poll.poll(self._dialer.timeout * 1000):
            return int(ctypes.c_int(110).value)  # ETIMEDOUT: the dialer's deadline
        with socket.socket(fileno=os.dup(fd)) as sock:
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def _local(self) -> list[Any] | None:
        fd = self._lib.iscsi_get_fd(self._context)
        if fd < 0:
            return None
        with socket.socket(fileno=os.dup(fd)) as sock:
            return list(sock.getsockname())

    def _outcome(self, begun: float, outcome: str, code: str | None) -> None:
        took = round((time.monotonic() - begun) * 1000)
        self._dialer.events.emit(
            "outcome", step=self._step, attempt=self.attempt, target=self._name, outcome=outcome, code=code, ms=took
        )

    def _log_in(self) -> None:
        self._exchange("login", self._lib.iscsi_login_async, lambda _status, _data: None, SanLoginRefused)

    def _log_out(self) -> None:
        before, self.patience = self.patience, LOGOUT_PATIENCE
        with contextlib.suppress(VadplabError):
            self._exchange("logout", self._lib.iscsi_logout_async, lambda _status, _data: None, SanCut)
        self.patience = before

    def _exchange(
        self, what: str, function: Any, answer: Callable[[int, int | None], None], error: type[VadplabError]
    ) -> None:
        """Calls an asynchronous function of the library and serves the connection until it has called back."""
        done: list[int] = []

        def arrived(_context: int, status: int, data: int | None, _private: int) -> None:
            answer(status, data)
            done.append(status)

        keep = Callback(arrived)
        self._keep[id(keep)] = (keep,)
        end = time.monotonic() + self.patience
        if function(self._context, keep, None) != 0:
            raise error(f"{self.route}: {what}: {self._text()}", **self.where)
        while not done:
            left = end - time.monotonic()
            if left <= 0:
                raise SanSilent(f"{self.route}: {what}: no answer for {self.patience:.0f} s", **self.where)
            if not self._serve(left) and not done:
                raise SanCut(f"{self.route}: {what}: the connection was cut", **self.where)
        if done[0] != STATUS_GOOD:
            text, code = self._text(), self._code()
            if what == "login" and code == _AUTHENTICATION:
                raise SanCredentials(f"{self.route}: CHAP refused", **self.where)
            raise error(f"{self.route}: {what} refused: {text}", **self.where)

    # The session's thread

    def _run(self) -> None:
        failure: VadplabError | None = None
        try:
            while not self._closing:
                self._issue()
                if not self._serve(1.0):
                    failure = SanCut(f"{self.route}: the session was cut: {self._text()}", **self.where)
                    break
                if self._in_flight and time.monotonic() - self._progress > self.patience:
                    failure = SanSilent(f"{self.route}: no answer for {self.patience:.0f} s", **self.where)
                    break
            if failure is None and not self._in_flight:
                self._log_out()
        except BaseException as exc:
            failure = SanProtocol(f"{self.route}: {type(exc).__name__}: {exc}", **self.where)
        finally:
            self._end(failure or SanCut(f"{self.route}: the session was closed", **self.where))

    def _issue(self) -> None:
        with self._lock:
            fresh, self._waiting = self._waiting, deque()
        if fresh and not self._in_flight:
            self._progress = time.monotonic()
        for command in fresh:
            self._send(command)

    def _send(self, command: Command) -> None:
        lib, size = self._lib, len(command.view)
        cdb = (ctypes.c_ubyte * len(command.cdb)).from_buffer_copy(command.cdb)
        task = lib.scsi_create_task(len(command.cdb), cdb, library.XFER_READ, size)
        buffer = (ctypes.c_char * size).from_buffer(command.view)
        lib.scsi_task_add_data_in_buffer(task, size, ctypes.addressof(buffer))
        self._numbers += 1
        number = self._numbers
        self._in_flight[number], self._keep[number] = command, (buffer,)
        if lib.iscsi_scsi_command_async(self._context, command.lun, task, self._callback, None, number) != 0:
            del self._in_flight[number], self._keep[number]
            lib.scsi_free_scsi_task(task)
            command.error = SanCut(f"{self.route}: {self._text()}", **self.where)
            command.done.set()

    def _finished(self, _context: int, status: int, task: int | None, number: int) -> None:
        """Called by the library when a command ended, well or not."""
        command = self._in_flight.pop(number)
        self._keep.pop(number)
        self._progress = time.monotonic()
        if task:
            self._lib.scsi_free_scsi_task(task)
        if status != STATUS_GOOD:
            text = self._text()
            if status == STATUS_CHECK_CONDITION and _UNIT_ATTENTION in text and command.tries < RETRIES:
                command.tries += 1
                with self._lock:
                    self._waiting.append(command)
                os.eventfd_write(self._wake, 1)
                return
            gone = status > 0xFF  # not a SCSI status: the library gave the command up
            kind: type[VadplabError] = SanCut if gone else SanReadFailed
            command.error = self._failure or kind(f"{self.route}: {text or 'the session ended'}", **self.where)
        command.done.set()

    def _serve(self, seconds: float) -> bool:
        """Waits for something to do, at most that long, and does it; False when the connection is of no use any more."""
        poll = select.poll()
        fd = self._lib.iscsi_get_fd(self._context)
        if fd < 0:
            return False
        poll.register(fd, self._lib.iscsi_which_events(self._context))
        poll.register(self._wake, select.POLLIN)
        for ready, happened in poll.poll(seconds * 1000):
            if ready == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif self._lib.iscsi_service(self._context, happened) < 0:
                return False
        return bool(self._lib.iscsi_get_fd(self._context) == fd)

    def _end(self, failure: VadplabError) -> None:
        with self._lock:
            failure = self._failure = self._failure or failure
            waiting, self._waiting = self._waiting, deque()
        self._destroy()  # calls back for everything in flight; afterwards no buffer is written any more
        for command in (*waiting, *self._in_flight.values()):
            command.error = self._again(failure)
            command.done.set()

    def _destroy(self) -> None:
        context, self._context = self._context, None
        if context is None:
            return
        self._totals(self._lib.iscsi_get_fd(context))
        self._lib.iscsi_destroy_context(context)

    def _totals(self, fd: int) -> None:
        """The connection's bytes, as the kernel counted them."""
        if fd < 0 or not self._open:
            return
        with contextlib.suppress(OSError, struct.error), socket.socket(fileno=os.dup(fd)) as sock:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_TOTALS.size)
            sent, received = _TCP_TOTALS.unpack(info)
            self._dialer.events.emit("bytes", step=self._step, attempt=self.attempt, sent=sent, received=received)

    def _again(self, failure: VadplabError) -> VadplabError:
        return type(failure)(failure.message, **self.where)

    def _text(self) -> str:
        if self._context is None:
            return ""
        return " ".join((self._lib.iscsi_get_error(self._context) or b"").decode("utf-8", "replace").split())[:200]

    def _code(self) -> int:
        match = _CODE.search(self._text())
        return int(match[1]) if match else 0

    def _errno(self) -> int:
        return self._code() or 101
