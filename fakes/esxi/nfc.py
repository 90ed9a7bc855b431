# SPDX-License-Identifier: MIT
"""One NFC conversation after authd said `200 Connect`: classic messages, then AIO frames (nfc reference sections 3 and 4).

Clients differ in order and in when they read, so the classic part answers each message as it comes: 33 with 36, 51 with 51,
52 with 52. Replies echo the type and opId of the frame. Blocking; raises WireError when the peer breaks the protocol.
"""

from __future__ import annotations

import itertools
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fakes.esxi import fastlz, wire
from fakes.esxi.channel import Buffer, Channel
from fakes.esxi.datastores import Datastores, NfcRefused, OpenedFile
from fakes.esxi.tickets import Ticket
from fakes.esxi.wire import Aio, Classic, Compression, FileType, Frame, IoHeader, NfcCode, WireError

CHUNK = 512 << 10
MAX_ANNOUNCED = 1 << 20
MAX_WRITES = 256
MAX_NAME = 1024
PACKING_SLACK = 1024  # data that does not shrink grows a little


@dataclass(slots=True)
class _Write:
    """A write request of which fragments still come in; `refused` once it was answered with an error."""

    left: int
    refused: bool = False


class NfcConversation:
    """Serves one client until it closes.

    Args:
        ticket: what the client may open.
        datastores: where it is opened.
        version: NFC protocol version that is announced (11 on ESXi 8, 9 on 7.0.3).
        one_disk: a second disk open at the same time is refused, as on real hosts.
        report: called with an event name and fields, for the journal.
    """

    def __init__(
        self,
        channel: Channel,
        ticket: Ticket,
        datastores: Datastores,
        *,
        version: int,
        one_disk: bool,
        report: Callable[..., None],
    ) -> None:
        self._channel = channel
        self._ticket = ticket
        self._datastores = datastores
        self._version = version
        self._one_disk = one_disk
        self._report = report
        self._handles = itertools.count(0x1_0000_0001)
        self._files: dict[int, OpenedFile] = {}
        self._writes: dict[int, _Write] = {}
        self._fragment = wire.FRAGMENT
        self.bytes_read = 0
        self.bytes_written = 0

    def run(self) -> None:
        """Until the client says that the session is complete; files are closed whatever happens."""
        try:
            while self._classic():
                self._frames()
        finally:
            for file in self._files.values():
                file.close()
            self._files.clear()

    # -- classic messages

    def _classic(self) -> bool:
        """True when the client opened an AIO session, False when it is done."""
        while True:
            message = bytes(self._channel.read(wire.CLASSIC_SIZE))
            (kind,) = struct.unpack_from("<I", message)
            match kind:
                case Classic.HANDSHAKE | Classic.FEATURES:
                    pass
                case Classic.SESSION_PARAMETERS:
                    self._channel.send(wire.classic(Classic.SESSION_PARAMETERS_REPLY, 1, at=16))
                case Classic.VERSION:
                    self._channel.send(wire.classic(Classic.VERSION, self._version))
                case Classic.CONNECTION_DATA:
                    lengths = wire.classic_words(message, 2)
                    if max(lengths) > MAX_NAME:
                        raise WireError("connection data too long")
                    self._channel.read(sum(lengths))
                case Classic.OPEN_AIO:
                    self._channel.send(wire.classic(Classic.OPEN_AIO))
                    return True
                case Classic.SESSION_COMPLETE:
                    return False
                case _:
                    raise WireError(f"classic message {kind}")

    # -- AIO frames

    def _frames(self) -> None:
        """Until the client closes the AIO session."""
        while True:
            frame = wire.parse_frame(self._channel.read(wire.FRAME.size))
            if frame.size > wire.MAX_PAYLOAD:
                raise WireError(f"payload of {frame.size} bytes")
            payload = self._channel.read(frame.size)
            expected = wire.PAYLOAD_SIZES.get(frame.type)
            if expected is None:
                self._refuse(frame.op, NfcCode.NOT_SUPPORTED, f"unknown request {frame.type}")
                continue
            if frame.size != expected:
                raise WireError(f"frame {frame.type} with {frame.size} bytes of payload instead of {expected}")
            match frame.type:
                case Aio.IO:
                    self._io(frame, wire.parse_io(payload))
                case Aio.OPEN_FILE:
                    self._open(frame, payload)
                case Aio.CLOSE_FILE:
                    self._close(frame, payload)
                case Aio.OPEN_SESSION:
                    self._announced(payload)
                    self._channel.send(wire.frame(Aio.OPEN_SESSION, frame.op, bytes(16)))
                case Aio.SOCKET_OPTIONS:
                    self._channel.send(wire.frame(Aio.SOCKET_OPTIONS, frame.op, self._socket_options()))
                case Aio.RESOURCE_POOL:
                    self._channel.send(wire.frame(Aio.RESOURCE_POOL, frame.op, bytes(payload)))
                case Aio.DISK_DATABASE_GET:
                    self._disk_database(frame, payload)
                case Aio.CLOSE_SESSION:
                    self._channel.send(wire.frame(Aio.CLOSE_SESSION, frame.op, bytes(4)))
                    return

    def _announced(self, payload: bytearray) -> None:
        """The first of the four words that can be a buffer size is taken for one (where it stands is not known)."""
        for word in struct.unpack("<4I", payload):
            if wire.SECTOR <= word <= MAX_ANNOUNCED and word % wire.SECTOR == 0:
                self._fragment = word
                return

    def _socket_options(self) -> bytes:
        sock = self._channel.link.sock
        sizes = [sock.getsockopt(socket.SOL_SOCKET, o) for o in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
        return wire.SOCKET_OPTIONS.pack(*sizes, 1)

    def _refuse(self, op: int, code: NfcCode, text: str, **fields: Any) -> None:
        self._report("refused", code=int(code), reason=text, **fields)
        self._channel.send(wire.error(op, code, text))

    # -- files

    def _open(self, frame: Frame, payload: bytearray) -> None:
        request = wire.parse_open_file(payload)
        raw = self._channel.read(request.path_length)
        path = raw.decode("utf-8", "replace")
        try:
            kind = FileType(request.type)
        except ValueError:
            self._refuse(frame.op, NfcCode.INVALID_FILE_TYPE, f"file type {request.type}", path=path)
            return
        try:
            if self._one_disk and kind is FileType.DISK and any(f.kind is kind for f in self._files.values()):
                raise NfcRefused(NfcCode.BUSY, "this connection has a disk open already")
            if len(self._files) >= 16:
                raise NfcRefused(NfcCode.OUT_OF_MEMORY, "too many open files")
            file = self._datastores.open(self._ticket, path, kind, request.write)
        except NfcRefused as exc:
            self._refuse(frame.op, exc.code, str(exc), path=path)
            return
        handle = next(self._handles)
        self._files[handle] = file
        self._report("open", path=path, handle=handle)
        capacity = file.size // wire.SECTOR if kind is FileType.DISK else file.size
        self._channel.send(
            wire.open_file_reply(frame.op, handle=handle, kind=kind, flags=request.flags, capacity=capacity)
        )

    def _close(self, frame: Frame, payload: bytearray) -> None:
        (handle,) = struct.unpack("<Q", payload)
        file = self._files.pop(handle, None)
        if file is None:
            self._refuse(frame.op, NfcCode.INVALID_ARGUMENT, "no such handle")
            return
        try:
            file.flush()
        except NfcRefused as exc:
            self._refuse(frame.op, exc.code, str(exc))
            return
        finally:
            file.close()
        self._channel.send(wire.frame(Aio.CLOSE_FILE, frame.op, bytes(payload)))

    def _disk_database(self, frame: Frame, payload: bytearray) -> None:
        """Always "not found". The place of the key's length is not known: beside the handle, or first."""
        handle, first, second = struct.unpack("<QII", payload)
        length = (first or second) if handle in self._files else handle & 0xFFFFFFFF
        if not 0 < length <= MAX_NAME:
            raise WireError(f"disk database key of {length} bytes")
        self._channel.read(length)
        self._channel.send(wire.frame(Aio.DISK_DATABASE_GET, frame.op, bytes(16)))

    # -- IO

    def _io(self, frame: Frame, io: IoHeader) -> None:
        if io.read:
            try:
                self._read(frame.op, io)
            except NfcRefused as exc:
                self._refuse(frame.op, exc.code, str(exc))
        else:
            self._write(frame.op, io)

    def _checked(self, io: IoHeader) -> OpenedFile:
        file = self._files.get(io.handle)
        if file is None:
            raise NfcRefused(NfcCode.INVALID_ARGUMENT, "no such handle")
        if io.offset + io.length > file.size:
            raise NfcRefused(NfcCode.INVALID_ARGUMENT, f"{io.offset}+{io.length} is beyond the end ({file.size})")
        if io.offset % file.unit or io.length % file.unit:
            raise NfcRefused(NfcCode.INVALID_ARGUMENT, f"not in units of {file.unit} bytes")
        if io.compression > Compression.SKIPZ:
            raise NfcRefused(NfcCode.NOT_SUPPORTED, f"compression {io.compression}")
        return file

    def _read(self, op: int, io: IoHeader) -> None:
        file = self._checked(io)
        step = CHUNK - CHUNK % self._fragment or self._fragment
        for start in range(0, io.length, step):
            data = memoryview(file.read(io.offset + start, min(step, io.length - start)))
            self._channel.send(*self._fragments(op, io, start, data))
            self.bytes_read += len(data)
        if not io.length:
            self._channel.send(wire.io_frame(op, IoHeader(0, True, 0, io.offset, 0, 0, 0, 0)))

    def _fragments(self, op: int, io: IoHeader, start: int, data: memoryview) -> list[Buffer]:
        """Frames of a read reply for `data`, which begins `start` bytes into the request."""
        buffers: list[Buffer] = []
        for begin in range(0, len(data), self._fragment):
            part: Buffer = data[begin : begin + self._fragment]
            size, packing = len(part), 0
            if io.compression == Compression.ZLIB:
                packed = zlib.compress(part, 1)
                if len(packed) < size:
                    part, packing = packed, int(Compression.ZLIB)
            head = IoHeader(0, True, packing, io.offset, io.length, start + begin, size, len(part))
            buffers += (wire.io_frame(op, head), part)
        return buffers

    def _write(self, op: int, io: IoHeader) -> None:
        if io.fragment_length > self._fragment or io.packed > self._fragment + PACKING_SLACK:
            raise WireError(f"fragment of {max(io.packed, io.fragment_length)} bytes")
        if io.length and not io.fragment_length:
            raise WireError("empty fragment")
        data = self._channel.read(io.packed)
        write = self._writes.get(op)
        if write is None:
            if len(self._writes) >= MAX_WRITES:
                raise WireError("too many unfinished writes")
            write = self._writes[op] = _Write(io.length)
        write.left -= io.fragment_length
        if not write.refused:
            try:
                file = self._checked(io)
                if not file.writable:
                    raise NfcRefused(NfcCode.READ_ONLY, "file is read-only")
                if (io.offset + io.fragment_offset) % file.unit or io.fragment_length % file.unit:
                    raise NfcRefused(NfcCode.INVALID_ARGUMENT, f"fragment not in units of {file.unit} bytes")
                if io.fragment_length:
                    file.write(io.offset + io.fragment_offset, _unpack(io, data))
                self.bytes_written += io.fragment_length
            except NfcRefused as exc:
                write.refused = True
                self._refuse(op, exc.code, str(exc))
        if write.left <= 0:
            del self._writes[op]
            if not write.refused:
                self._channel.send(wire.io_frame(op, IoHeader(0, False, 0, io.offset, io.length, 0, 0, 0)))


def _unpack(io: IoHeader, data: bytearray) -> Buffer:
    """The data of a write fragment. FastLZ may have fallen back to raw; skipz passes only so."""
    if io.compression == Compression.ZLIB:
        engine = zlib.decompressobj()
        try:
            plain = engine.decompress(data, io.fragment_length)
            more = engine.decompress(engine.unconsumed_tail, 1)  # nothing but the checksum may be left
        except zlib.error as exc:
            raise NfcRefused(NfcCode.INVALID_ARGUMENT, f"zlib: {exc}") from exc
        if len(plain) != io.fragment_length or more or not engine.eof:
            raise NfcRefused(NfcCode.INVALID_ARGUMENT, "zlib data has another length than announced")
        return plain
    if io.compression == Compression.FASTLZ and io.packed != io.fragment_length:
        try:
            unpacked = fastlz.decompress(data, io.fragment_length)
        except ValueError as exc:
            raise NfcRefused(NfcCode.INVALID_ARGUMENT, str(exc)) from exc
        if len(unpacked) != io.fragment_length:
            raise NfcRefused(NfcCode.INVALID_ARGUMENT, "FastLZ data has another length than announced")
        return unpacked
    if io.packed != io.fragment_length:
        raise NfcRefused(NfcCode.NOT_SUPPORTED, f"compression {io.compression} is not supported")
    return data
