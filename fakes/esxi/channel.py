# SPDX-License-Identifier: MIT
"""The bytes of one 902 connection: clear, TLS, TLS left without close_notify, TLS anew.

TLS runs over `ssl.MemoryBIO` because authd leaves it without a close_notify: bytes that arrived behind the last TLS record
belong to what follows (nfc reference section 1), so they are handed on when a channel is left. Blocking; meant for a
thread of its own. Every wait has a deadline: `idle` seconds without a byte, and `until` (monotonic) for a whole phase.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Sequence

from fakes.esxi.wire import WireError

Buffer = bytes | bytearray | memoryview
_RECEIVE = 256 << 10
_SEND = 128 << 10
_VECTORS = 512


class Link:
    """A socket with deadlines, and the bytes that were received but not yet used."""

    def __init__(self, sock: socket.socket, idle: float) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.idle = idle
        self.until: float | None = None
        self.pending = bytearray()
        self.received = 0
        self.sent = 0

    def _wait(self, event: int) -> None:
        left = self.idle if self.until is None else min(self.idle, self.until - time.monotonic())
        poll = select.poll()
        poll.register(self.sock, event)
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError("the peer is idle")

    def receive(self, buffer: memoryview) -> int:
        """At least one byte into `buffer`. Raises EOFError, TimeoutError or OSError."""
        if self.pending:
            count = min(len(self.pending), len(buffer))
            buffer[:count] = self.pending[:count]
            del self.pending[:count]
            return count
        while True:
            if self.until is not None and time.monotonic() > self.until:
                raise TimeoutError("the peer is too slow")
            try:
                count = self.sock.recv_into(buffer)
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            if not count:
                raise EOFError("connection closed")
            self.received += count
            return count

    def send(self, buffers: Sequence[Buffer]) -> None:
        """All of `buffers`, in as few system calls as possible."""
        queue = [memoryview(b).cast("B") for b in buffers if len(b)]
        first = 0
        while first < len(queue):
            try:
                count = self.sock.sendmsg(queue[first : first + _VECTORS])
            except BlockingIOError:
                self._wait(select.POLLOUT)
                continue
            self.sent += count
            while first < len(queue) and count >= len(queue[first]):
                count -= len(queue[first])
                first += 1
            if count:
                queue[first] = queue[first][count:]


class Channel:
    """Clear bytes over a link."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def receive(self, buffer: memoryview) -> int:
        """At least one byte into `buffer`. Raises EOFError, TimeoutError, WireError or OSError."""
        return self.link.receive(buffer)

    def send(self, *buffers: Buffer) -> None:
        """Sends all of `buffers`."""
        self.link.send(buffers)

    def read_into(self, buffer: memoryview) -> None:
        """Fills `buffer`."""
        done = 0
        while done < len(buffer):
            done += self.receive(buffer[done:])

    def read(self, size: int) -> bytearray:
        """Exactly `size` bytes."""
        data = bytearray(size)
        self.read_into(memoryview(data))
        return data

    def line(self, limit: int = 1024) -> bytes:
        """One line without its end (CRLF or LF); raises WireError when it is longer than `limit`."""
        data = bytearray()
        one = bytearray(1)
        while not data.endswith(b"\n"):
            if len(data) > limit:
                raise WireError("line too long")
            self.read_into(memoryview(one))
            data += one
        return bytes(data.rstrip(b"\r\n"))


class TlsChannel(Channel):
    """TLS (server side) over a link; the handshake is done by the constructor."""

    def __init__(self, link: Link, context: ssl.SSLContext) -> None:
        super().__init__(link)
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._scratch = memoryview(bytearray(_RECEIVE))
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
            except ssl.SSLError:
                self._flush()  # the alert that says why
                raise
        self._flush()

    @property
    def version(self) -> str:
        """`TLSv1.3`, `TLSv1.2`."""
        return self._tls.version() or "?"

    def _feed(self) -> None:
        count = self.link.receive(self._scratch)
        self._in.write(self._scratch[:count])

    def _flush(self) -> None:
        if self._out.pending:
            self.link.send([self._out.read()])

    def receive(self, buffer: memoryview) -> int:
        while True:
            try:
                count = int(self._tls.read(len(buffer), buffer))
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
                continue
            except ssl.SSLZeroReturnError:
                count = 0
            if not count:
                raise EOFError("TLS closed")
            return count

    def send(self, *buffers: Buffer) -> None:
        for buffer in buffers:
            if len(buffer):
                self._tls.write(buffer)  # a memory BIO takes everything
                if self._out.pending >= _SEND:  # one that grows further costs more than its bytes
                    self._flush()
        self._flush()

    def leave(self) -> Channel:
        """The clear channel after TLS was left without close_notify; bytes behind the last record stay in order."""
        rest = self._in.read()
        self.link.pending[:0] = rest
        return Channel(self.link)
