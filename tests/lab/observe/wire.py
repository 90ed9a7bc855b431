# SPDX-License-Identifier: MIT
"""Crafts router captures: cooked-v2 pcapng files in which a forwarded packet is two frames, in and out.

Packets come from scapy, so that the parser under test is not tested against itself.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw

SLL2 = 276
MS = 1_000_000


def block(kind: int, body: bytes) -> bytes:
    """One pcapng block."""
    body += b"\0" * (-len(body) % 4)
    return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)


class Wire:
    """Writes frames with explicit times (UTC ns). `snap` cuts each frame as `dumpcap -s` does."""

    def __init__(self, snap: int = 276) -> None:
        self.snap = snap
        self.blocks: list[tuple[int, bytes]] = []

    def frame(self, utc: int, packet: Packet, *, out: bool, interface: int = 2, ethertype: int = 0x0800) -> None:
        """One frame."""
        data = struct.pack(">HHIHBB8s", ethertype, 0, interface, 1, 4 if out else 0, 6, b"\2\0\0\0\0\1") + bytes(packet)
        cut = data[: self.snap]
        cut_padded = cut + b"\0" * (-len(cut) % 4)
        body = struct.pack("<IIIII", 0, utc >> 32, utc & 0xFFFFFFFF, len(cut), len(data)) + cut_padded
        self.blocks.append((utc, block(6, body)))

    def forward(self, utc: int, packet: Packet) -> None:
        """In on one interface, out on another."""
        self.frame(utc, packet, out=False, interface=2)
        self.frame(utc + 5_000, packet, out=True, interface=3)

    def write(self, path: Path) -> Path:
        """The pcapng file, frames in order of time."""
        shb = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
        idb = block(1, struct.pack("<HHI", SLL2, 0, self.snap) + struct.pack("<HHB3xHH", 9, 1, 9, 0, 0))
        path.write_bytes(shb + idb + b"".join(b for _, b in sorted(self.blocks, key=lambda b: b[0])))
        return path


class Conversation:
    """One TCP connection through the router, step by step; each method takes the time in ns of its packet."""

    def __init__(self, wire: Wire, src: str, sport: int, dst: str, dport: int, isn: int = 1000) -> None:
        self.wire = wire
        self.ends = (src, sport, dst, dport)
        self.seq = {True: isn, False: (isn + 50_000) & 0xFFFFFFFF}

    def packet(self, flags: str, *, mine: bool = True, payload: bytes = b"", **fields: Any) -> Packet:
        """A packet of the initiator (`mine`) or of the responder."""
        src, sport, dst, dport = self.ends if mine else (*self.ends[2:], *self.ends[:2])
        tcp = TCP(
            sport=sport, dport=dport, flags=flags, seq=self.seq[mine], ack=self.seq[not mine] & 0xFFFFFFFF, **fields
        )
        return IP(src=src, dst=dst) / tcp / Raw(payload) if payload else IP(src=src, dst=dst) / tcp

    def syn(self, utc: int, *, forwarded: bool = True) -> None:
        """The SYN; not forwarded = a firewall stopped it."""
        packet = self.packet("S")
        self.wire.forward(utc, packet) if forwarded else self.wire.frame(utc, packet, out=False)

    def open(self, utc: int) -> None:
        """A whole handshake, 3 ms."""
        self.syn(utc)
        self.seq[True] += 1
        self.wire.forward(utc + MS, self.packet("SA", mine=False))
        self.seq[False] += 1
        self.wire.forward(utc + 2 * MS, self.packet("A"))

    def say(self, utc: int, size: int, *, mine: bool = True) -> None:
        """`size` bytes of payload in one segment."""
        self.wire.forward(utc, self.packet("PA", mine=mine, payload=b"x" * size))
        self.seq[mine] = (self.seq[mine] + size) & 0xFFFFFFFF

    def reset_by_router(self, utc: int) -> None:
        """The firewall's `reject with tcp reset`: leaves the router without having come in."""
        self.wire.frame(utc, self.packet("RA", mine=False), out=True)

    def reset(self, utc: int, *, mine: bool = False) -> None:
        """A reset by an end point, forwarded."""
        self.wire.forward(utc, self.packet("RA", mine=mine))

    def prohibited(self, utc: int, *, code: int = 13, router: str = "10.77.4.1") -> None:
        """The firewall's ICMP answer to the SYN."""
        quoted = bytes(self.packet("S"))
        self.wire.frame(utc, IP(src=router, dst=self.ends[0]) / ICMP(type=3, code=code) / Raw(quoted), out=True)

    def close(self, utc: int) -> None:
        """FIN both ways."""
        self.wire.forward(utc, self.packet("FA"))
        self.wire.forward(utc + MS, self.packet("FA", mine=False))


def udp(src: str, sport: int, dst: str, dport: int, size: int = 8) -> Packet:
    """A datagram."""
    return IP(src=src, dst=dst) / UDP(sport=sport, dport=dport) / Raw(b"u" * size)


def ping(src: str, dst: str) -> Packet:
    """An ICMP echo request."""
    return IP(src=src, dst=dst) / ICMP()
