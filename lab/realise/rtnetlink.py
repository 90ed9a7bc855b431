# SPDX-License-Identifier: MIT
"""Links, addresses and routes by raw rtnetlink: no child process, one message batch for a whole lab.

Both ends of a veth are made directly inside their namespaces and never appear on the host. A link counts as up when
its operstate is UP: a packet sent earlier may be lost and cost a second (lab reference, section 1).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from types import TracebackType

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 17, 18, 20, 24
_REQUEST, _ACK, _DUMP, _EXCL, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_IFLA_IFNAME, _IFLA_MTU, _IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 4, 16, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_GATEWAY = 4, 5
_IFF_UP = 1
_OPERSTATE_UP = 6
_TABLE_MAIN, _PROTO_STATIC, _UNICAST = 254, 4, 1
LOOPBACK = 1


@dataclass(frozen=True, slots=True)
class Message:
    """One request: its type, its extra flags, its body, and what it does (for errors)."""

    kind: int
    flags: int
    body: bytes
    what: str


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("HH", length, kind) + value + b"\0" * (-length % 4)


def _ifinfo(index: int = 0, flags: int = 0) -> bytes:
    return struct.pack("BxHiII", 0, 0, index, flags, flags)


def veth(
    name: str, index: int, netns: int, peer: str, peer_index: int, peer_netns: int, *, mtu: int | None = None
) -> Message:
    """A veth pair, each end down and in the namespace of its descriptor."""

    def end(own: str, fd: int) -> bytes:
        size = _attribute(_IFLA_MTU, struct.pack("I", mtu)) if mtu else b""
        return _attribute(_IFLA_IFNAME, own.encode() + b"\0") + _attribute(_IFLA_NET_NS_FD, struct.pack("I", fd)) + size

    other = _ifinfo(peer_index) + end(peer, peer_netns)
    info = _attribute(_IFLA_INFO_KIND, b"veth") + _attribute(_IFLA_INFO_DATA, _attribute(_VETH_INFO_PEER, other))
    body = _ifinfo(index) + end(name, netns) + _attribute(_IFLA_LINKINFO, info)
    return Message(_RTM_NEWLINK, _CREATE | _EXCL, body, f"create veth {name} - {peer}")


def link_up(index: int) -> Message:
    """Sets an interface up."""
    return Message(_RTM_NEWLINK, 0, _ifinfo(index, _IFF_UP), f"set interface {index} up")


def link_delete(index: int) -> Message:
    """Deletes an interface (and the other end of a veth)."""
    return Message(_RTM_DELLINK, 0, _ifinfo(index), f"delete interface {index}")


def address(index: int, value: IPv4Interface) -> Message:
    """Gives an interface an address."""
    packed = value.ip.packed
    body = struct.pack("BBBBI", socket.AF_INET, value.network.prefixlen, 0, 0, index)
    body += _attribute(_IFA_ADDRESS, packed) + _attribute(_IFA_LOCAL, packed)
    return Message(_RTM_NEWADDR, _CREATE | _EXCL, body, f"add address {value}")


def default_route(gateway: IPv4Address, index: int) -> Message:
    """The default route through `gateway`."""
    body = struct.pack("BBBBBBBBI", socket.AF_INET, 0, 0, 0, _TABLE_MAIN, _PROTO_STATIC, 0, _UNICAST, 0)
    body += _attribute(_RTA_GATEWAY, gateway.packed) + _attribute(_RTA_OIF, struct.pack("I", index))
    return Message(_RTM_NEWROUTE, _CREATE | _EXCL, body, f"add default route by {gateway}")


class Netlink:
    """A route socket of the namespace in which it is made; it stays there for ever."""

    def __init__(self, timeout: float = 10.0) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._sock.settimeout(timeout)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._sock.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the socket."""
        self._sock.close()

    def apply(self, messages: list[Message]) -> None:
        """Sends all messages at once and takes one acknowledgement for each.

        Raises:
            OSError: the kernel refused one; the text says which. TimeoutError: no answer.
        """
        if not messages:
            return
        first = self._sequence + 1
        out = bytearray()
        for message in messages:
            self._sequence += 1
            length = 16 + len(message.body)
            out += struct.pack("IHHII", length, message.kind, message.flags | _REQUEST | _ACK, self._sequence, 0)
            out += message.body + b"\0" * (-length % 4)
        self._sock.send(out)
        waiting = len(messages)
        while waiting:
            for kind, sequence, body in self._receive():
                if kind != _NLMSG_ERROR or sequence < first:
                    continue
                waiting -= 1
                code = struct.unpack_from("i", body)[0]
                if code:
                    raise OSError(-code, f"{messages[sequence - first].what}: {os.strerror(-code)}")

    def links(self) -> dict[int, tuple[str, bool]]:
        """`{index: (name, operstate is UP)}`."""
        self._sequence += 1
        self._sock.send(struct.pack("IHHII", 32, _RTM_GETLINK, _REQUEST | _DUMP, self._sequence, 0) + _ifinfo())
        found: dict[int, tuple[str, bool]] = {}
        while True:
            for kind, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if kind == _NLMSG_DONE:
                    return found
                if kind == _RTM_NEWLINK:
                    index = struct.unpack_from("BxHiII", body)[2]
                    attributes = dict(_attributes(body[16:]))
                    name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode()
                    found[index] = (name, attributes.get(_IFLA_OPERSTATE, b"\0")[0] == _OPERSTATE_UP)

    def wait_up(self, deadline: float = 5.0, *, only: Container[str] | None = None) -> None:
        """Returns when every link but loopback (or every one of those named `only`) has operstate UP.

        Raises:
            TimeoutError: one did not within `deadline` seconds; the text names it.
        """
        end = time.monotonic() + deadline
        while True:
            wanted = [(n, up) for index, (n, up) in self.links().items() if index != LOOPBACK]
            down = [name for name, up in wanted if not up and (only is None or name in only)]
            if not down:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"links not up after {deadline} s: {', '.join(sorted(down))}")
            time.sleep(0.0005)

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._sock.recv(1 << 17)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, _, sequence, _ = struct.unpack_from("IHHII", data, offset)
            if length < 16:
                break
            yield kind, sequence, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
