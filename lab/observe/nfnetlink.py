# SPDX-License-Identifier: MIT
"""Netfilter's netlink: messages, attributes and a socket in another namespace.

A message is a 16-byte header (length, type, flags, sequence, port id), a 4-byte netfilter header (family, version,
resource id) and attributes (length, type, value, padded to four bytes; nested ones hold attributes again). Type is
subsystem << 8 | message. Values of attributes are big-endian unless noted.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from lab.observe.namespaces import socket_in

NETLINK_NETFILTER = 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, ACK, DUMP = 1, 4, 0x300
HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
NESTED = 0x8000
_SOL_NETLINK, _ADD_MEMBERSHIP, _NO_ENOBUFS = 270, 1, 5
_SO_RCVBUFFORCE = 33
READ_SIZE = 1 << 20

Attributes = dict[int, bytes]


class Message(NamedTuple):
    """One message: type, flags, sequence number, family, resource id and its attributes' bytes."""

    type: int
    flags: int
    sequence: int
    family: int
    resource: int
    body: bytes


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram; a truncated tail is left out. Errors come as `NLMSG_ERROR` with raw body."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > len(data):
            return
        body = data[offset + HEADER.size : offset + length]
        if kind in (NLMSG_ERROR, NLMSG_DONE) or len(body) < 4:
            yield Message(kind, flags, sequence, 0, 0, body)
        else:
            yield Message(kind, flags, sequence, body[0], int.from_bytes(body[2:4], "big"), body[4:])
        offset += (length + 3) & ~3


def attributes(data: bytes) -> Attributes:
    """{type: value} of a run of attributes; a truncated tail is left out."""
    found: Attributes = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def number(value: bytes | None) -> int | None:
    """A big-endian number, or None."""
    return int.from_bytes(value, "big") if value is not None else None


def error_of(message: Message) -> int:
    """The errno of an `NLMSG_ERROR` (0 = acknowledged)."""
    return -int(struct.unpack_from("=i", message.body)[0]) if len(message.body) >= 4 else errno.EPROTO


class Overrun(OSError):
    """The kernel had more messages than the receive buffer could hold: some are lost."""


class NetfilterSocket:
    """A netlink socket made in the namespace behind `netns` (None: this one); it stays there."""

    def __init__(self, netns: int | None, receive_buffer: int = 8 << 20) -> None:
        self.sock = socket_in(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._sequence = 0
        try:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
            except PermissionError:  # needs rights in the initial user namespace; without them net.core.rmem_max caps
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.sock.bind((0, 0))
            self.sock.settimeout(5.0)
        except BaseException:
            self.sock.close()
            raise

    def join(self, group: int) -> None:
        """Subscribes to a multicast group."""
        self.sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def send(self, kind: int, flags: int, body: bytes, family: int = socket.AF_UNSPEC, resource: int = 0) -> int:
        """Sends one request; returns its sequence number."""
        self._sequence += 1
        payload = struct.pack(">BBH", family, 0, resource) + body
        header = HEADER.pack(HEADER.size + len(payload), kind, REQUEST | flags, self._sequence, 0)
        self.sock.send(header + payload)
        return self._sequence

    def request(self, kind: int, body: bytes, family: int = socket.AF_UNSPEC, resource: int = 0) -> None:
        """Sends one request and waits for its acknowledgement (not on a socket that has joined a group).

        Raises:
            OSError: what the kernel answered. TimeoutError: it did not answer.
        """
        sequence = self.send(kind, ACK, body, family, resource)
        while True:
            for message in messages(self.sock.recv(READ_SIZE)):
                if message.type == NLMSG_ERROR and message.sequence == sequence:
                    if code := error_of(message):
                        raise OSError(code, os.strerror(code))
                    return

    def dump(self, kind: int, family: int) -> Iterator[Message]:
        """Every object of a kind (not on a socket that has joined a group).

        Raises:
            OSError: what the kernel answered. TimeoutError: it did not answer.
        """
        sequence = self.send(kind, DUMP, b"", family)
        while True:
            for message in messages(self.sock.recv(READ_SIZE)):
                if message.sequence != sequence:
                    continue
                if message.type == NLMSG_DONE:
                    return
                if message.type == NLMSG_ERROR:
                    if code := error_of(message):
                        raise OSError(code, os.strerror(code))
                    return
                yield message

    def read(self) -> list[Message] | None:
        """The messages of the next datagram, of a socket that does not block; None when there is none.

        Raises:
            Overrun: the receive buffer was full and messages were lost; those that follow can be read.
            OSError: the kernel refuses.
        """
        try:
            return list(messages(self.sock.recv(READ_SIZE)))
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno == errno.ENOBUFS:
                raise Overrun(exc.errno, exc.strerror) from exc
            raise

    def fileno(self) -> int:
        """For selectors and asyncio."""
        return self.sock.fileno()

    def close(self) -> None:
        """Closes the socket."""
        self.sock.close()
