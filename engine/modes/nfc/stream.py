# SPDX-License-Identifier: MIT
"""Bytes over one TCP connection: raw, and TLS in memory.

authd leaves TLS without a close_notify and goes on in clear, or with a second TLS, on the same connection (nfc reference
section 1). So TLS runs over `ssl.MemoryBIO`, and `TlsStream(exact=True)` takes exactly one TLS record at a time from the
socket: what follows the last record stays there for the next layer.

`send` and `read_into` may be used by two threads at once, one each: an OpenSSL object is only touched under a lock, and
no thread waits for the network while it holds that lock.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from engine.errors import VadplabError, from_oserror
from engine.modes.nfc.errors import NfcCut, NfcProtocol, NfcSilent

PATIENCE = 30.0
_RECORD_HEADER = 5
_MAX_RECORD = (1 << 14) + 2048
_CHUNK = 256 << 10


class Stream(Protocol):
    """What the NFC messages travel on."""

    def send(self, data: bytes) -> None:
        """Sends all of `data`."""

    def read_into(self, view: memoryview) -> None:
        """Fills `view`."""


class RawStream:
    """The connection itself; errors name initiator, responder, port and step. `patience`: seconds for one exact read."""

    def __init__(self, sock: socket.socket, *, host: str, target: str, port: int, step: str) -> None:
        self.sock = sock
        self.host = host
        self.target = target
        self.port = port
        self.step = step
        self.patience = PATIENCE
        self.sent = 0
        self.received = 0
        self._send_lock = threading.Lock()

    @property
    def where(self) -> dict[str, Any]:
        """Step, host, target and port for errors."""
        return {"step": self.step, "host": self.host, "target": self.target, "port": self.port}

    @property
    def route(self) -> str:
        """`proxy-1 to esxi-1:902`, for messages."""
        return f"{self.host} to {self.target}:{self.port}"

    def send(self, data: bytes) -> None:
        """Sends all of `data`."""
        try:
            with self._send_lock:
                self.sock.settimeout(self.patience)
                self.sock.sendall(data)
                self.sent += len(data)
        except OSError as exc:
            raise self.failed(exc) from exc

    def read_into(self, view: memoryview) -> None:
        """Fills `view` before the patience ends."""
        done = 0
        end = time.monotonic() + self.patience
        while done < len(view):
            done += self.read_some(view[done:], end)

    def read_some(self, view: memoryview, end: float) -> int:
        """Reads what is there, at least one byte, before the monotonic time `end`."""
        try:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.sock.settimeout(left)
            count = self.sock.recv_into(view)
            if not count:
                raise EOFError("closed by the host")
        except (OSError, EOFError) as exc:
            raise self.failed(exc) from exc
        self.received += count
        return count

    def close(self) -> None:
        """Ends the connection; a thread that waits on it fails at once."""
        with contextlib.suppress(OSError):  # not connected any more
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def failed(self, exc: BaseException) -> VadplabError:
        """The catalogue's error for a failed read or write."""
        if isinstance(exc, TimeoutError):
            return NfcSilent(f"{self.route}: no answer for {self.patience:.0f} s", **self.where)
        return NfcCut(f"{self.route}: the connection was cut", **self.where)


class TlsStream:
    """TLS over a raw stream.

    Args:
        exact: take one record at a time from the socket, so that TLS can be left without losing what follows.
        keylog: file for the session's keys.
    """

    def __init__(self, raw: RawStream, *, exact: bool, keylog: Path | None = None) -> None:
        self._raw = raw
        self._exact = exact
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._flush_lock = threading.Lock()
        self._buffer = memoryview(bytearray(_MAX_RECORD if exact else _CHUNK))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the ticket names the certificate's thumbprint instead
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if keylog is not None:
            context.keylog_filename = str(keylog)
        self.certificate = b""
        self._tls = context.wrap_bio(self._in, self._out, server_side=False)

    def handshake(self) -> bytes:
        """Makes the TLS session; returns the host's certificate (DER).

        Raises:
            TlsFailed: with OpenSSL's reason. NfcSilent, NfcCut.
        """
        while True:
            try:
                self._tls.do_handshake()
                self._flush()
                self.certificate = self._tls.getpeercert(binary_form=True) or b""
                return self.certificate
            except ssl.SSLWantReadError:
                self._flush()
                self._feed(time.monotonic() + self._raw.patience)
            except ssl.SSLError as exc:
                raise from_oserror(exc, **self._raw.where) from exc

    def send(self, data: bytes) -> None:
        """Sends all of `data`."""
        with self._send_lock:
            try:
                with self._lock:
                    self._tls.write(data)
            except ssl.SSLError as exc:
                raise self._raw.failed(exc) from exc
            self._flush()

    def read_into(self, view: memoryview) -> None:
        """Fills `view` before the raw stream's patience ends."""
        done = 0
        end = time.monotonic() + self._raw.patience
        while done < len(view):
            try:
                with self._lock:
                    count: int = self._tls.read(len(view) - done, view[done:])  # type: ignore[assignment]
            except ssl.SSLWantReadError:
                self._flush()
                self._feed(end)
                continue
            except ssl.SSLError as exc:
                raise self._raw.failed(exc) from exc
            if not count:
                raise self._raw.failed(EOFError("TLS ended"))
            done += count

    def _feed(self, end: float) -> None:
        if self._exact:
            head = self._buffer[:_RECORD_HEADER]
            self._fill(head, end)
            length = int.from_bytes(head[3:5], "big")
            if length > _MAX_RECORD - _RECORD_HEADER or head[0] not in (20, 21, 22, 23):
                raise NfcProtocol(f"{self._raw.route}: not TLS", **self._raw.where)
            self._fill(self._buffer[_RECORD_HEADER : _RECORD_HEADER + length], end)
            count = _RECORD_HEADER + length
        else:
            count = self._raw.read_some(self._buffer, end)
        with self._lock:
            self._in.write(self._buffer[:count])

    def _fill(self, view: memoryview, end: float) -> None:
        done = 0
        while done < len(view):
            done += self._raw.read_some(view[done:], end)

    def _flush(self) -> None:
        with self._flush_lock:  # records leave in the order in which they were made
            with self._lock:
                data = self._out.read()
            if data:
                self._raw.send(data)
