# SPDX-License-Identifier: MIT
"""A small NFC client, written from the nfc reference alone: it shares no code with the fake host or with the engine.

`Authd` speaks the text dialogue, `Nfc` the classic messages and AIO frames. Every wait has a deadline (`TIMEOUT`).
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import struct
import zlib
from collections.abc import Iterator, Sequence

TIMEOUT = 10.0
MAGIC = 0xA100DA7A
IO = "<QQQIIIIII"


def fastlz(data: bytes) -> bytes:
    """FastLZ level 1, the plainest there is: literals, and copies of the byte before."""
    out, at, literals = bytearray(), 0, bytearray()

    def flush() -> None:
        for begin in range(0, len(literals), 32):
            part = literals[begin : begin + 32]
            out.append(len(part) - 1)
            out.extend(part)
        literals.clear()

    while at < len(data):
        run = 0
        while literals and run < 264 and at + run < len(data) and data[at + run] == literals[-1]:
            run += 1
        if run >= 3:
            flush()
            out += bytes(((run - 2) << 5, 0)) if run < 9 else bytes((7 << 5, run - 9, 0))
            at += run
        if at < len(data):
            literals.append(data[at])
            at += 1
    flush()
    return bytes(out)


class NfcError(Exception):
    """The server answered with an error frame."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Stream:
    """A TCP connection that can enter and leave TLS."""

    def __init__(self, address: tuple[str, int], *, step: int | None = None) -> None:
        """`step`: bytes that are sent at once (a segment each)."""
        self._step = step
        self.sock = socket.create_connection(address, timeout=TIMEOUT)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls: ssl.SSLObject | None = None
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._clear = bytearray()

    def start_tls(self, maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> str:
        """Handshake; returns the SHA-1 of the server's certificate, colon separated."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = maximum
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._more()
        self._flush()
        certificate = self._tls.getpeercert(binary_form=True)
        assert certificate is not None
        return ":".join(f"{b:02X}" for b in hashlib.sha1(certificate).digest())

    def leave_tls(self) -> None:
        """Clear bytes follow, without a close_notify."""
        assert self._tls is not None
        self._clear += self._in.read()
        self._tls = None

    def _flush(self) -> None:
        if self._out.pending:
            self._put(self._out.read())

    def _put(self, data: bytes) -> None:
        for at in range(0, len(data), self._step or len(data) or 1):
            self.sock.sendall(data[at : at + (self._step or len(data))])

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError("closed")
        self._in.write(data)

    def send(self, data: bytes) -> None:
        if self._tls is None:
            self._put(data)
        else:
            self._tls.write(data)
            self._flush()

    def read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            if self._clear:
                piece = bytes(self._clear[: size - len(parts)])
                del self._clear[: len(piece)]
            elif self._tls is None:
                piece = self.sock.recv(size - len(parts))
            else:
                try:
                    piece = self._tls.read(size - len(parts))
                except ssl.SSLWantReadError:
                    self._more()
                    continue
            if not piece:
                raise EOFError("closed")
            parts += piece
        return bytes(parts)

    def line(self) -> str:
        text = bytearray()
        while not text.endswith(b"\r\n"):
            text += self.read(1)
        return text.decode()[:-2]

    def close(self) -> None:
        self.sock.close()


class Authd:
    """The text dialogue of 902 up to PROXY."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        step: int | None = None,
    ) -> None:
        self.stream = Stream(address, step=step)
        self.greeting = self.stream.line()
        self.thumbprint = self.stream.start_tls(maximum)

    def tell(self, line: str) -> None:
        """A line that gets no reply."""
        self.stream.send(line.encode() + b"\r\n")

    def ask(self, line: str) -> str:
        """A line and its reply."""
        self.tell(line)
        return self.stream.line()

    def close(self) -> None:
        self.stream.close()


class Nfc:
    """An NFC session over an authd connection that was answered with `200 Connect`."""

    def __init__(
        self,
        stream: Stream,
        *,
        ssl_again: bool,
        eager: bool = False,
        full: bool = True,
        order: Sequence[int] = (43, 33, 51),
    ) -> None:
        """`order` of the first messages; `eager`: all sent before anything is read; `full`: also send 54 and 55."""
        stream.leave_tls()
        if ssl_again:
            stream.start_tls()
        self.stream = stream
        self._op = 0
        bodies = {43: b"PlainText", 33: b"", 51: struct.pack("<I", 11)}
        answers = {33: 36, 51: 51}
        got: dict[int, bytes] = {}
        for kind in order:
            self._classic(kind, bodies[kind])
            if not eager and kind in answers:
                got[kind] = self._expect(answers[kind])
        for kind in order if eager else ():
            if kind in answers:
                got[kind] = self._expect(answers[kind])
        self.parameters = got[33]
        self.version = struct.unpack_from("<I", got[51], 4)[0]
        if full:
            self._classic(54, struct.pack("<II", 4, 7))
            stream.send(b"vddk")
            stream.send(b"nbdmode")
            self._classic(55, struct.pack("<I", 3))
        self._classic(52)
        self._expect(52)
        self.call(2, bytes(16))
        self.call(9, bytes(12))
        self.call(22, struct.pack("<I", 1))

    def _classic(self, kind: int, body: bytes = b"") -> None:
        self.stream.send((struct.pack("<I", kind) + body).ljust(264, b"\0"))

    def _expect(self, kind: int) -> bytes:
        message = self.stream.read(264)
        got = struct.unpack_from("<I", message)[0]
        assert got == kind, f"message {got} instead of {kind}"
        return message

    def send(self, kind: int, payload: bytes, extra: bytes = b"", *, op: int | None = None) -> int:
        """Sends a frame; returns its opId."""
        if op is None:
            op = self._op
            self._op += 1
        self.stream.send(struct.pack("<IIII", MAGIC, kind, len(payload), op) + payload + extra)
        return op

    def receive(self, op: int, kind: int) -> bytes:
        """Payload of a reply; error frames become NfcError."""
        magic, got, size, got_op = struct.unpack("<IIII", self.stream.read(16))
        assert magic == MAGIC
        assert got_op == op, f"opId {got_op} instead of {op}"
        payload = self.stream.read(size)
        if got == 1:
            raise NfcError(struct.unpack_from("<I", payload)[0], payload[4:].rstrip(b"\0").decode())
        assert got == kind
        return payload

    def call(self, kind: int, payload: bytes, extra: bytes = b"") -> bytes:
        return self.receive(self.send(kind, payload, extra), kind)

    def open(self, path: str, *, write: bool = False, kind: int = 2) -> tuple[int, int]:
        """Handle and the field at offset 28."""
        name = path.encode()
        flags = 0x1A if write else 0x1E
        request = struct.pack("<I12xII", len(name), kind, flags).ljust(60, b"\0")
        reply = self.call(4, request, name)
        assert len(reply) == 60
        handle, kind_again, flags_again = struct.unpack_from("<QII", reply, 8)
        assert (kind_again, flags_again) == (kind, flags)
        assert struct.unpack_from("<I", reply, 36)[0] == 512
        return handle, struct.unpack_from("<I", reply, 28)[0]

    def send_read(self, handle: int, offset: int, length: int, compression: int = 0) -> int:
        """Asks for a read; returns the opId."""
        request = struct.pack("<QIIQQIII", handle, 1, compression, offset, length, length, length, 0)
        return self.send(7, request)

    def fragments(self, op: int, offset: int, length: int) -> Iterator[tuple[int, int, bytes]]:
        """Fragments of a read reply until `length` bytes came: place in the request, compression, data."""
        left = length
        while left:
            head = self.receive(op, 7)
            zero, direction, compression, at, whole, place, size, packed, _ = struct.unpack("<QIIQIIIII", head)
            assert (zero, direction, at, whole) == (0, 1, offset, length)
            data = self.stream.read(packed)
            if compression == 1:
                data = zlib.decompress(data)
            else:
                assert compression == 0
            assert len(data) == size <= 65536
            left -= size
            yield place, compression, data

    def read(self, handle: int, offset: int, length: int, compression: int = 0) -> bytes:
        data = bytearray(length)
        op = self.send_read(handle, offset, length, compression)
        for place, _, piece in self.fragments(op, offset, length):
            data[place : place + len(piece)] = piece
        return bytes(data)

    def write(self, handle: int, offset: int, data: bytes, *, compression: int = 0, step: int = 65536) -> None:
        """Writes with fragments of `step` bytes, in falling order to show that the order is free."""
        op = self._op
        self._op += 1
        for place in reversed(range(0, len(data), step)):
            piece = data[place : place + step]
            packed = {0: bytes, 1: zlib.compress, 2: fastlz}[compression](piece)
            kind = compression
            if compression == 2 and len(packed) >= len(piece):  # it falls back to raw for a fragment
                packed, kind = piece, 0
            head = struct.pack("<QIIQIIIII", handle, 0, kind, offset, len(data), place, len(piece), len(packed), 0)
            self.send(7, head, packed, op=op)
        reply = self.receive(op, 7)
        assert struct.unpack_from("<I", reply, 8)[0] == 0

    def close_file(self, handle: int) -> None:
        self.call(5, struct.pack("<Q", handle))

    def close(self) -> None:
        """Ends the session in the documented way; the server then closes the connection."""
        self.call(3, struct.pack("<I", 0))
        self._classic(4)
        assert self.stream.sock.recv(1) == b""
        self.stream.close()


@contextlib.contextmanager
def session(
    address: tuple[str, int],
    ticket: str,
    *,
    service: str = "vpxa-nfc",
    old: bool = False,
    eager: bool = False,
    order: Sequence[int] = (43, 33, 51),
    maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    step: int | None = None,
) -> Iterator[Nfc]:
    """A whole dialogue and an NFC session. `old`: only SESSION and PROXY, as older clients do."""
    authd = Authd(address, maximum=maximum, step=step)
    try:
        authd.tell(f"SESSION {ticket}")
        if not old:
            assert authd.ask("BANNER ").startswith("220 ")
            assert authd.ask("THUMBPRINT_SHA2 PlainText").startswith("200 ")
        assert authd.ask(f"PROXY {service}").startswith("200 Connect ha-nfc")
        yield Nfc(authd.stream, ssl_again="ssl" in service, eager=eager, order=order)
    finally:
        authd.close()
