# SPDX-License-Identifier: MIT
"""Headers of one captured frame: link (Linux cooked v1 or v2), IPv4, and TCP, UDP or ICMP.

Parsed by hand because a run has some hundred thousand frames and only a few fields of each are needed. Cooked headers
(libpcap's LINKTYPE_LINUX_SLL 113 and LINKTYPE_LINUX_SLL2 276) carry the packet type: 4 means that this host sent the
packet. On a router that tells a packet that came in from one that went out, which is what proves forwarding.
"""

from __future__ import annotations

import functools
import socket
import struct
from typing import NamedTuple

SLL, SLL2 = 113, 276
OUTGOING = 4
ETH_IPV4, ETH_ARP, ETH_IPV6 = 0x0800, 0x0806, 0x86DD
ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})
"""ICMP types that answer another packet: they quote its header and open nothing themselves."""


class LinkTypeError(ValueError):
    """The capture's link layer carries no direction, so forwarding can not be told from arrival."""


class Frame(NamedTuple):
    """One frame. Ports are 0 where the protocol has none; `inner` is the 5-tuple quoted by an ICMP error."""

    outgoing: bool
    interface: int
    protocol: int
    src: str
    dst: str
    sport: int = 0
    dport: int = 0
    flags: int = 0
    seq: int = 0
    payload: int = 0
    icmp_type: int = 0
    icmp_code: int = 0
    inner: tuple[int, str, int, str, int] | None = None


_SLL2 = struct.Struct(">HHIHBB")
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_TCP = struct.Struct(">HHIIBB")
_PORTS = struct.Struct(">HH")


@functools.lru_cache(maxsize=4096)
def _address(raw: bytes) -> str:
    return socket.inet_ntoa(raw)


def parse(data: bytes, linktype: int, wirelen: int) -> Frame | None:
    """The frame's headers, or None for what is no IPv4 packet (ARP, IPv6) or is cut too short to read.

    Args:
        data: captured bytes, link header included. wirelen: length on the wire.

    Raises:
        LinkTypeError: the link layer is not a cooked one.
    """
    if linktype == SLL2:
        if len(data) < 20:
            return None
        ethertype, _, interface, _, kind, _ = _SLL2.unpack_from(data)
        offset = 20
    elif linktype == SLL:
        if len(data) < 16:
            return None
        kind, ethertype = _PORTS.unpack_from(data)[0], _PORTS.unpack_from(data, 12)[1]
        interface, offset = 0, 16
    else:
        raise LinkTypeError(f"link type {linktype} is not Linux cooked mode: capture with `-i any`")
    if ethertype != ETH_IPV4:
        return None
    return _ipv4(data, offset, kind == OUTGOING, interface, wirelen - offset)


def _ipv4(data: bytes, offset: int, outgoing: bool, interface: int, wire: int) -> Frame | None:
    if len(data) < offset + 20:
        return None
    first, _, total, _, fragment, _, protocol, _, src, dst = _IPV4.unpack_from(data, offset)
    length = (first & 15) * 4
    if first >> 4 != 4 or length < 20:
        return None
    base = Frame(outgoing, interface, protocol, _address(src), _address(dst))
    body = offset + length
    # Segments of more than 64 KiB (big TCP) leave the total at 0; the length on the wire stands in for it.
    size = (total or wire) - length
    if fragment & 0x1FFF:
        return base
    if protocol == TCP:
        return _tcp(data, body, base, size)
    if protocol == UDP and len(data) >= body + 8:
        sport, dport = _PORTS.unpack_from(data, body)
        return base._replace(sport=sport, dport=dport, payload=max(0, size - 8))
    if protocol == ICMP and len(data) >= body + 4:
        return base._replace(icmp_type=data[body], icmp_code=data[body + 1], inner=_quoted(data, body))
    return base


def _tcp(data: bytes, body: int, base: Frame, size: int) -> Frame | None:
    if len(data) < body + 14:
        return None
    sport, dport, seq, _, doff, flags = _TCP.unpack_from(data, body)
    return base._replace(sport=sport, dport=dport, flags=flags, seq=seq, payload=max(0, size - (doff >> 4) * 4))


def _quoted(data: bytes, body: int) -> tuple[int, str, int, str, int] | None:
    """Protocol, source, source port, destination, destination port of the packet that an ICMP error quotes."""
    start = body + 8
    if data[body] not in ICMP_ERRORS or len(data) < start + 28:
        return None
    first, _, _, _, _, _, protocol, _, src, dst = _IPV4.unpack_from(data, start)
    ports = start + (first & 15) * 4
    if len(data) < ports + 4 or protocol not in (TCP, UDP):
        return None
    sport, dport = _PORTS.unpack_from(data, ports)
    return protocol, _address(src), sport, _address(dst), dport
