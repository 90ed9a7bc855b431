# SPDX-License-Identifier: MIT
"""One NFC connection: files and disks opened on it, several reads in flight.

No thread of its own: whichever thread waits for a read first takes frames from the connection, also those of the other
threads' reads, and puts their fragments straight into the buffers that wait for them. What arrives while every thread is
busy stays in the kernel's buffer.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.dialer import Connection
from engine.errors import VadplabError
from engine.events import EventLog
from engine.modes.errors import WriteFailed
from engine.modes.nfc import aio, authd, classic
from engine.modes.nfc.errors import NfcCut, NfcProtocol, OpenFailed, ReadFailed
from engine.modes.nfc.stream import RawStream
from engine.modes.ticket import Ticket
from engine.rpc.tuning import tune

MAX_TEXT = 1 << 20
CLOSE_PATIENCE = 2.0
WRITE_FRAGMENT = 65536
"""Bytes of a fragment of a write, at most (nfc reference section 4)."""


@dataclass(slots=True, eq=False)
class Request:
    """A frame that waits for its answer: a read with its buffer, or a call with its reply."""

    op: int
    what: str
    owner: NfcClient
    error: type[VadplabError]
    expect: int
    view: memoryview | None = None
    offset: int = 0
    missing: int = 0
    packing: aio.Packing = aio.Packing.NONE
    seen: set[int] = field(default_factory=set)
    reply: bytes = b""
    done: bool = False
    failure: BaseException | None = None

    def wait(self) -> None:
        """Returns when it is answered. Raises the class of the catalogue that belongs to what was asked."""
        self.owner._wait(self)


class NfcClient:
    """An authenticated NFC connection. Make it with `open`."""

    def __init__(self, raw: RawStream, attempt: str, events: EventLog) -> None:
        self.raw = raw
        self.attempt = attempt
        self.version = 0
        self._events = events
        self._stream: Any = raw
        self._ops = itertools.count()
        self._pending: dict[int, Request] = {}
        self._turn = threading.Condition()
        self._send_lock = threading.Lock()
        self._receiving = False
        self._failure: BaseException | None = None
        self._closed = False
        self._head = memoryview(bytearray(aio.HEADER.size))
        self._body = memoryview(bytearray(aio.MAX_PAYLOAD))
        self._packed = memoryview(bytearray(0))

    @classmethod
    def open(
        cls,
        connection: Connection,
        ticket: Ticket,
        *,
        ssl: bool,
        events: EventLog,
        step: str,
        keylog: Path | None = None,
    ) -> NfcClient:
        """authd, classic handshake and AIO session on a connected socket. `ssl`: NBDSSL, else NBD (clear after authd).

        Raises:
            NoGreeting, NotAuthd, TlsFailed, TicketCertificate, TicketRefused, HostBusy, ServiceRefused, NfcProtocol,
            NfcSilent, NfcCut: the connection is closed then.
        """
        tune(connection.sock)
        raw = RawStream(connection.sock, host=events.host, target=connection.target, port=connection.port, step=step)
        self = cls(raw, connection.attempt, events)
        try:
            self._stream = authd.authenticate(raw, ticket, ssl=ssl, keylog=keylog)
            with self._named():
                self.version = classic.handshake(self._stream)
            self._call("open the session", aio.open_session, expect=aio.Type.OPEN_SESSION)
        except BaseException:
            self._end()
            raise
        return self

    def at_step(self, step: str) -> None:
        """Errors from now on belong to `step`; the connection's use is noted."""
        if step != self.raw.step:
            self.raw.step = step
            self._events.use(self.attempt, step=step)

    def open_file(self, path: str, kind: aio.FileType, *, write: bool = False) -> aio.OpenFile:
        """Opens a file for reading, or for writing too. Raises OpenFailed with the host's code and text."""
        reply = self._call(
            f"open {path}",
            lambda op: aio.open_file(op, path, kind, write=write),
            expect=aio.Type.OPEN_FILE,
            error=OpenFailed,
        )
        with self._named():
            return aio.parse_opened(reply)

    def close_file(self, handle: int) -> None:
        """Closes a file."""
        self._call("close a file", lambda op: aio.close_file(op, handle), expect=aio.Type.CLOSE_FILE, error=ReadFailed)

    def read_text(self, path: str) -> str:
        """A whole small text file of the VM's folder, for example its `*.vmx`."""
        return self.read_file(path, limit=MAX_TEXT).decode(errors="replace")

    def read_file(self, path: str, *, limit: int, pack: bool = False) -> bytes:
        """A whole file of the VM's folder.

        Args:
            limit: most bytes that are taken. pack: ask the host to compress it on the wire (zlib).

        Raises:
            OpenFailed: the host refused, or the file is longer. ReadFailed.
        """
        opened = self.open_file(path, aio.FileType.TEXT)
        if opened.capacity > limit:
            raise OpenFailed(f"{self.raw.route}: {path}: {opened.capacity} bytes is too long", **self.raw.where)
        data = bytearray(opened.capacity)
        if data:
            packing = aio.Packing.ZLIB if pack else aio.Packing.NONE
            self.start_read(opened.handle, 0, memoryview(data), packing).wait()
        self.close_file(opened.handle)
        return bytes(data)

    def start_read(
        self, handle: int, offset: int, view: memoryview, packing: aio.Packing = aio.Packing.NONE
    ) -> Request:
        """Asks for `len(view)` bytes at `offset` into `view`; several may be in flight. `packing`: how the host may pack."""
        request = Request(
            -1, f"read at offset {offset}", self, ReadFailed, aio.Type.IO, view, offset, len(view), packing=packing
        )
        self._send(request, lambda op: aio.read(op, handle, offset, len(view), packing))
        return request

    def start_write(self, handle: int, offset: int, data: memoryview) -> Request:
        """Sends `data` for `offset`; the host answers once, after the last fragment. Several may be in flight."""
        request = Request(-1, f"write at offset {offset}", self, WriteFailed, aio.Type.IO)
        size = len(data)

        def fragments(op: int) -> bytes:
            parts: list[bytes | memoryview] = []
            for at in range(0, size, WRITE_FRAGMENT):
                piece = data[at : at + WRITE_FRAGMENT]
                parts += (aio.write(op, handle, offset, size, at, len(piece)), piece)
            return b"".join(parts)

        self._send(request, fragments)
        return request

    def close(self, handles: tuple[int, ...] = ()) -> None:
        """Closes files, session and connection; never raises, and waits at most a few seconds. Harmless when repeated."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            quiet = self._failure is None and not self._pending
        if quiet:
            with contextlib.suppress(VadplabError):
                self.raw.patience = CLOSE_PATIENCE
                for handle in handles:
                    self.close_file(handle)
                self._call("close the session", aio.close_session, expect=aio.Type.CLOSE_SESSION)
                self._stream.send(classic.message(classic.Type.SESSION_COMPLETE))
        self._end()

    def _call(
        self, what: str, make: Callable[[int], bytes], *, expect: int, error: type[VadplabError] = NfcProtocol
    ) -> bytes:
        request = Request(-1, what, self, error, expect)
        self._send(request, make)
        request.wait()
        return request.reply

    def _send(self, request: Request, make: Callable[[int], bytes]) -> None:
        with self._send_lock:
            with self._turn:
                if self._failure is not None:
                    raise self._again()
                request.op = next(self._ops)
                self._pending[request.op] = request
            try:
                self._stream.send(make(request.op))
            except BaseException as exc:
                self._fail(exc)
                raise

    def _wait(self, request: Request) -> None:
        with self._turn:
            while not request.done and self._failure is None and self._receiving:
                self._turn.wait()
            lead = not request.done and self._failure is None
            self._receiving = self._receiving or lead
        if lead:
            self._lead(request)
        if request.failure is not None:
            raise request.failure
        if not request.done:
            raise self._again()

    def _lead(self, request: Request) -> None:
        try:
            while not request.done:
                self._take_frame()
        except BaseException as exc:
            self._fail(exc)
        finally:
            with self._turn:
                self._receiving = False
                self._turn.notify_all()

    def _take_frame(self) -> None:
        with self._named():
            self._stream.read_into(self._head)
            kind, size, op = aio.parse_header(self._head)
            payload = self._body[:size]
            self._stream.read_into(payload)
            request = self._pending.get(op)
            if request is None:
                raise NfcProtocol(f"an answer to nothing that was asked (opId {op})")
            if kind == aio.Type.ERROR:
                code, text = aio.parse_error(payload)
                message = f"{self.raw.route}: {request.what}: {text} (NFC code {code})"
                self._finish(request, request.error(message, **self.raw.where))
            elif kind != request.expect:
                raise NfcProtocol(f"frame {kind} instead of {request.expect}")
            elif request.view is None:
                request.reply = bytes(payload)
                self._finish(request, None)
            else:
                self._take_fragment(request, request.view, aio.parse_fragment(payload))

    def _take_fragment(self, request: Request, view: memoryview, piece: aio.Fragment) -> None:
        if piece.offset != request.offset or piece.request != len(view) or piece.at in request.seen:
            raise NfcProtocol(f"a fragment that does not belong to the {request.what}")
        request.seen.add(piece.at)
        if piece.length > request.missing:
            raise NfcProtocol(f"fragments overlap in the {request.what}")
        part = view[piece.at : piece.at + piece.length]
        if piece.packing is aio.Packing.NONE:
            self._stream.read_into(part)
        else:
            if piece.packing is not request.packing:
                raise NfcProtocol(f"a fragment packed in another way than asked in the {request.what}")
            packed = self._scratch(piece.packed)
            self._stream.read_into(packed)
            aio.unpack(packed, part)
        request.missing -= piece.length
        if not request.missing:
            self._finish(request, None)

    def _scratch(self, size: int) -> memoryview:
        """Room for a packed fragment; only the thread that receives uses it."""
        if size > len(self._packed):
            self._packed = memoryview(bytearray(aio.MAX_FRAGMENT + aio.SLACK))
        return self._packed[:size]

    def _finish(self, request: Request, failure: BaseException | None) -> None:
        with self._turn:
            del self._pending[request.op]
            request.failure = failure
            request.done = True
            self._turn.notify_all()

    def _fail(self, exc: BaseException) -> None:
        """The connection is of no use any more: every read in flight fails."""
        with self._turn:
            if self._failure is None:
                self._failure = exc
            self._pending.clear()
            self._turn.notify_all()
        self.raw.close()

    def _again(self) -> BaseException:
        """The connection's failure, as an error of its own for each thread that asks."""
        failure = self._failure
        if isinstance(failure, VadplabError):
            kind = type(failure)
            return kind(failure.message, **self.raw.where)
        return NfcCut(f"{self.raw.route}: the connection was closed", **self.raw.where)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the pure parsers get route, step, host, target and port."""
        try:
            yield
        except NfcProtocol as exc:
            if exc.host is None:
                raise NfcProtocol(f"{self.raw.route}: {exc.message}", **self.raw.where) from exc
            raise

    def _end(self) -> None:
        self._fail(NfcCut(f"{self.raw.route}: the connection was closed", **self.raw.where))
        self._events.emit(
            "bytes", step=self.raw.step, attempt=self.attempt, sent=self.raw.sent, received=self.raw.received
        )
