# SPDX-License-Identifier: MIT
"""The data link: blocks between two Data Movers, or from a Data Mover to a console (`docs/datalink.md`).

Mutual TLS, then frames: u32 big-endian length, one msgpack array `[kind, fields, payload]`. The payload is the array's
last element, so it can be sent and received without being copied into a message. Blocking: the data path's threads use
it. Either side may listen; the *sender* of blocks is the only one that writes until it has said `end` (an OpenSSL
connection cannot be read and written at once by two threads), and it sends `tick` when it has nothing to send, so that a
silent link always means a dead one.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack  # type: ignore[import-untyped]

from engine.dialer import Connection
from engine.errors import RemoteError, VadplabError, from_oserror
from engine.mover.errors import DataLinkCut, DataLinkSilent, DataProtocol, NoFreePort, Stopped, WrongToken
from engine.rpc.identity import Identity, check_peer, peer_names
from engine.rpc.tuning import tune

SILENCE = 30.0
"""Seconds without a frame after which the other side counts as gone."""
TICK = 5.0
HANDSHAKE = 10.0
MAX_FRAME = 4 << 20
MAX_HEAD = 8192
"""Bytes of a frame before its payload."""
_LENGTH = struct.Struct(">I")
_BIN32 = b"\xc6"

Part = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. `payload` refers to the link's buffer: it is valid until the next `receive`."""

    kind: str
    fields: dict[str, Any]
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Route:
    """Who opened the link to whom: initiator, responder and port, as errors name them; `attempt` is the dialer's id."""

    initiator: str
    responder: str
    port: int
    attempt: str


class DataLink:
    """An open link. Several threads may `send`; one may `receive`, and only while nobody sends.

    `answers`: kinds of frames that are requests of the sender, and what answers them while this side receives.
    """

    def __init__(self, sock: ssl.SSLSocket, route: Route, *, step: str, silence: float = SILENCE) -> None:
        self.route = route
        self.step = step
        self.sent = 0
        self.received = 0
        self._sock = sock
        self._sock.settimeout(silence)
        self._silence = silence
        self._lock = threading.RLock()
        self.answers: dict[str, Callable[[Frame], None]] = {}
        self._failure: BaseException | None = None
        self._last = time.monotonic()
        self._buffer = bytearray(64 << 10)
        self._ticker: threading.Thread | None = None
        self._quiet = threading.Event()

    def __enter__(self) -> DataLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def where(self) -> dict[str, Any]:
        """Step, host, target and port for errors."""
        return {
            "step": self.step,
            "host": self.route.initiator,
            "target": self.route.responder,
            "port": self.route.port,
        }

    def send(self, kind: str, fields: dict[str, Any] | None = None, payload: Sequence[Part] = (), size: int = 0) -> int:
        """Sends one frame whose payload is the `size` bytes of these parts; returns the frame's length.

        Raises:
            DataLinkSilent: the other side takes nothing. DataLinkCut: it is gone.
        """
        head = b"\x93" + msgpack.packb(kind) + msgpack.packb(fields or {}) + _BIN32 + _LENGTH.pack(size)
        if len(head) > MAX_HEAD or len(head) + size > MAX_FRAME:
            raise DataProtocol(f"a {kind} frame of {len(head)} + {size} bytes is too long", **self.where)
        # One call for the whole frame: full TLS records, and other senders wait for one hand-over instead of one a part.
        message = b"".join((_LENGTH.pack(len(head) + size), head, *payload))
        try:
            with self._lock:
                if self._failure is not None:
                    raise self._failure
                self._sock.sendall(message)
                self._last = time.monotonic()
                self.sent += _LENGTH.size + len(head) + size
        except (OSError, ValueError) as exc:
            # A frame may be half sent: whoever waits for the lock fails at once instead of after another silence.
            self._failure = self._failure or exc
            raise self._failed(exc, "took nothing") from exc
        return _LENGTH.size + len(head) + size

    def receive(self) -> Frame:
        """The next frame that is not a tick; an `error` frame is raised as the other side's error.

        Raises:
            DataLinkSilent, DataLinkCut, DataProtocol, RemoteError.
        """
        while True:
            frame = self._receive()
            if frame.kind == "error":
                raise RemoteError(frame.fields)
            if frame.kind in self.answers:
                self.answers[frame.kind](frame)
            elif frame.kind != "tick":
                return frame

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """This thread alone sends and receives meanwhile, so the sender of blocks may ask the other side something."""
        with self._lock:
            yield

    def heed(self) -> None:
        """Raises what the other side reports, or that it is gone, while this side is the one that sends; never waits."""
        with self._lock:
            try:
                poll = select.poll()
                poll.register(self._sock, select.POLLIN)
                arrived = bool(poll.poll(0))
            except (OSError, ValueError) as exc:
                raise self._failed(exc, "sent nothing") from exc
            if arrived:
                frame = self.receive()
                raise DataProtocol(f"the other side sent {frame.kind} before the end", **self.where)

    def drain(self, seconds: float) -> None:
        """Reads and drops what still arrives, so that an error sent before is not lost to a reset; never raises."""
        end = time.monotonic() + seconds
        with contextlib.suppress(OSError, ValueError, VadplabError):
            self._sock.settimeout(seconds)
            while time.monotonic() < end:
                self._receive()

    def fail(self, error: VadplabError) -> None:
        """Tells the other side why this one gives up; never raises."""
        with contextlib.suppress(VadplabError):
            self.send("error", error.to_dict())

    def start_ticks(self) -> None:
        """From now on a tick is sent when nothing else was for a while. Only the sender of blocks calls this."""
        if self._ticker is None:
            self._ticker = threading.Thread(target=self._tick, name="data-link-ticks", daemon=True)
            self._ticker.start()

    def stop_ticks(self) -> None:
        """Returns when no tick will be sent any more: afterwards this side may `receive`."""
        self._quiet.set()
        if self._ticker is not None:
            self._ticker.join(self._silence + 1)

    def close(self) -> None:
        """Ends the link; threads that wait on it fail at once. Harmless when called twice."""
        self._quiet.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._sock.close()

    def _receive(self) -> Frame:
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if not 0 < length <= MAX_FRAME:
            raise DataProtocol(f"the other side announces a frame of {length} bytes", **self.where)
        body = self._exactly(length)
        try:
            return parse(body)
        except DataProtocol as exc:
            raise DataProtocol(exc.message, **self.where) from exc

    def _exactly(self, size: int) -> memoryview:
        if size > len(self._buffer):
            self._buffer = bytearray(MAX_FRAME)
        view = memoryview(self._buffer)[:size]
        done = 0
        deadline = time.monotonic() + self._silence
        try:
            while done < size:
                count = self._sock.recv_into(view[done:])
                if not count:
                    raise EOFError("closed")
                done += count
                if done < size and time.monotonic() > deadline:
                    raise TimeoutError("a frame trickles in")
        except (OSError, ValueError, EOFError) as exc:
            raise self._failed(exc, "sent nothing") from exc
        self.received += size
        return view

    def _tick(self) -> None:
        while not self._quiet.wait(TICK / 5):
            if time.monotonic() - self._last >= TICK:
                try:
                    self.send("tick")
                except VadplabError:
                    return  # whoever sends or waits next sees the same failure and reports it

    def _failed(self, exc: BaseException, what: str) -> VadplabError:
        route = f"{self.route.initiator} to {self.route.responder}:{self.route.port}"
        if isinstance(exc, TimeoutError):
            return DataLinkSilent(f"{route}: the other Data Mover {what} for {self._silence:.0f} s", **self.where)
        return DataLinkCut(f"{route}: the data connection was cut", **self.where)


def parse(body: memoryview) -> Frame:
    """One frame's body (without its length). Raises DataProtocol for anything that is not `[kind, fields, payload]`."""
    head = bytes(body[:MAX_HEAD])
    try:
        unpacker = msgpack.Unpacker(strict_map_key=True, raw=False, max_buffer_size=MAX_HEAD)
        unpacker.feed(head)
        if unpacker.read_array_header() != 3:
            raise DataProtocol("a frame is not an array of three")
        kind, fields = unpacker.unpack(), unpacker.unpack()
        at = unpacker.tell()
    except DataProtocol:
        raise
    except Exception as exc:  # msgpack raises classes of several families; each means the same to us
        raise DataProtocol(f"a frame is not msgpack: {type(exc).__name__}") from exc
    if not isinstance(kind, str) or not isinstance(fields, dict):
        raise DataProtocol("a frame has no kind or no fields")
    begin = at + 5
    if head[at : at + 1] != _BIN32 or len(head) < begin or _LENGTH.unpack(head[at + 1 : begin])[0] != len(body) - begin:
        raise DataProtocol("a frame's payload does not end where the frame ends")
    return Frame(kind, fields, body[begin:])


class DataListener:
    """Waits for the one connection that brings the token. Ports are taken from the configured range."""

    def __init__(self, address: str, ports: tuple[int, int], identity: Identity) -> None:
        self._identity = identity
        self._context = identity.server_context()
        self._context.num_tickets = 0
        self._sock = bind_in_range(address, ports)
        self.port: int = self._sock.getsockname()[1]
        self.token = secrets.token_urlsafe(24)

    def accept(
        self, *, deadline: float, stop: threading.Event, step: str, welcome: dict[str, Any], silence: float = SILENCE
    ) -> tuple[DataLink, dict[str, Any]]:
        """The link and the peer's hello fields; connections without the token are told so and closed.

        Args:
            deadline: seconds to wait. stop: ends the wait. welcome: fields of the answer.

        Raises:
            DataLinkSilent: nobody came. Stopped.
        """
        end = time.monotonic() + deadline
        self._sock.settimeout(0.2)
        try:
            while not stop.is_set():
                if time.monotonic() > end:
                    raise DataLinkSilent(
                        f"{self._identity.name}: nobody connected to port {self.port} in {deadline:.0f} s",
                        step=step,
                        target=self._identity.name,
                        port=self.port,
                    )
                try:
                    raw, _ = self._sock.accept()
                except TimeoutError:
                    continue
                found = self._admit(raw, step, welcome, silence)
                if found is not None:
                    return found
            raise Stopped("the wait for the data connection was ended", step=step)
        finally:
            self.close()

    def close(self) -> None:
        """Stops listening."""
        self._sock.close()

    def _admit(
        self, raw: socket.socket, step: str, welcome: dict[str, Any], silence: float
    ) -> tuple[DataLink, dict[str, Any]] | None:
        link = None
        try:
            tune(raw)
            raw.settimeout(HANDSHAKE)
            sock = self._context.wrap_socket(raw, server_side=True)
            names = peer_names(sock.getpeercert())
            route = Route(names[0] if names else "?", self._identity.name, self.port, "")
            link = DataLink(sock, route, step=step, silence=HANDSHAKE)
            hello = link.receive()
            token = hello.fields.get("token")
            if hello.kind != "hello" or not isinstance(token, str) or not hmac.compare_digest(token, self.token):
                link.fail(
                    WrongToken(f"{route.initiator} to {route.responder}:{self.port}: token refused", **link.where)
                )
                link.close()
                return None
            attempt = str(hello.fields.get("attempt", ""))
            link.send("welcome", welcome)
        except (OSError, ValueError, VadplabError):
            if link is not None:
                link.close()
            raw.close()
            return None  # not the peer that we wait for, or one that gave up: go on waiting
        opened = DataLink(sock, Route(route.initiator, route.responder, self.port, attempt), step=step, silence=silence)
        opened.sent, opened.received = link.sent, link.received
        return opened, hello.fields


def connect(
    connection: Connection,
    identity: Identity,
    *,
    expect: str,
    token: str,
    step: str,
    silence: float = SILENCE,
    **hello: Any,
) -> tuple[DataLink, dict[str, Any]]:
    """Makes a link of a connected socket: TLS, the peer's name, hello with the token; returns it and the welcome's fields.

    Raises:
        TlsFailed, WrongPeer, RemoteError (`data.token`), DataLinkSilent, DataLinkCut.
    """
    route = Route(identity.name, connection.target, connection.port, connection.attempt)
    where: dict[str, Any] = {"step": step, "host": route.initiator, "target": route.responder, "port": route.port}
    try:
        tune(connection.sock)
        connection.sock.settimeout(HANDSHAKE)
        sock = identity.client_context().wrap_socket(connection.sock, server_hostname=expect)
    except (OSError, ValueError) as exc:
        connection.sock.close()
        raise from_oserror(exc, **where) from exc
    link = DataLink(sock, route, step=step, silence=silence)
    try:
        check_peer(sock.getpeercert(), expect, **where)
        link.send("hello", {"token": token, "attempt": connection.attempt, **hello})
        welcome = link.receive()
        if welcome.kind != "welcome":
            raise DataProtocol(f"{welcome.kind} instead of welcome", **where)
    except BaseException:
        link.close()
        raise
    return link, welcome.fields


def bind_in_range(address: str, ports: tuple[int, int]) -> socket.socket:
    """A listening socket on the first free port of the range (`0, 0`: the kernel chooses). Raises NoFreePort."""
    for port in range(ports[0], ports[1] + 1):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(16)
            return sock
        except OSError:
            sock.close()
    raise NoFreePort(f"no free port in {ports[0]}-{ports[1]} on {address}")
