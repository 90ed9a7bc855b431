# SPDX-License-Identifier: MIT
"""TCP flows put together from frames: one flow = one connection attempt.

A new SYN (other initial sequence number) on the same 5-tuple is a new flow; the same SYN again is a retransmission.
Payload is counted by sequence numbers on the frames that went *out*: what the firewall stopped is not counted, a
retransmission adds nothing, and a frame that the capture lost is still counted. *Activity* is a list of short intervals
with payload, for checks against step marks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lab.observe.headers import ACK, FIN, RST, SYN, Frame

GAP_NS = 1_000_000
"""Payload frames nearer than this belong to one activity interval …"""
SPAN_NS = 5_000_000
"""… which is closed after this length, so that its edges stay exact enough for step marks."""

Tuple4 = tuple[str, int, str, int]


@dataclass(slots=True)
class Side:
    """One direction of a flow: where its sequence numbers stand."""

    next_seq: int | None = None
    payload: int = 0

    def advance(self, seq: int, length: int) -> int:
        """New bytes that this segment brings (0 for a retransmission)."""
        end = (seq + length) & 0xFFFFFFFF
        if self.next_seq is None:
            self.next_seq = end
            self.payload += length
            return length
        ahead = (end - self.next_seq) & 0xFFFFFFFF
        if ahead == 0 or ahead >= 1 << 31:
            return 0
        self.next_seq = end
        self.payload += ahead
        return ahead


@dataclass(slots=True)
class TcpFlow:
    """One connection attempt as the router saw it. Times are UTC nanoseconds; `start` is None when no SYN was seen."""

    src: str
    sport: int
    dst: str
    dport: int
    start: int | None
    isn: int | None
    end: int = 0
    syn_in: int = 0
    syn_out: int = 0
    synack_in: int | None = None
    synack_out: int | None = None
    rst: list[dict[str, Any]] = field(default_factory=list)
    icmp: list[dict[str, Any]] = field(default_factory=list)
    fin: int | None = None
    forward: Side = field(default_factory=Side)
    back: Side = field(default_factory=Side)
    retransmits: int = 0
    stopped: int = 0
    packets: int = 0
    activity: list[list[int]] = field(default_factory=list)
    frames: dict[str, list[int]] = field(default_factory=lambda: {"syn": [], "rst": [], "icmp": []})

    def feed(self, frame: Frame, utc: int, number: int) -> None:
        """Takes one frame of this flow; `number` is its place in the capture, counted from 1."""
        self.packets += 1
        self.end = utc
        initiator = frame.src == self.src and frame.sport == self.sport
        if frame.flags & RST:
            self._reset(frame, utc, number, initiator)
        elif frame.flags & SYN:
            self._handshake(frame, utc, number)
        elif frame.outgoing:
            self._payload(frame, utc, initiator)
        elif frame.payload:
            self.stopped += 1  # until it leaves

    def _handshake(self, frame: Frame, utc: int, number: int) -> None:
        if not frame.flags & ACK:
            if frame.outgoing:
                self.syn_out += 1
            else:
                self.syn_in += 1
                self.retransmits += self.syn_in > 1
            self.frames["syn"].append(number)
            self.forward.next_seq = (frame.seq + 1) & 0xFFFFFFFF
            return
        self.back.next_seq = (frame.seq + 1) & 0xFFFFFFFF
        if frame.outgoing:
            self.synack_out = self.synack_out or utc
        else:
            self.synack_in = self.synack_in or utc

    def _reset(self, frame: Frame, utc: int, number: int, initiator: bool) -> None:
        self.frames["rst"].append(number)
        by = "initiator" if initiator else "responder"
        if frame.outgoing:
            for seen in self.rst:
                if seen["by"] == by and seen["seq"] == frame.seq:
                    seen["forwarded"] = True
                    return
            # It left the router and never came in: the firewall made it.
            by = "router"
            if any(seen["by"] == by and seen["seq"] == frame.seq for seen in self.rst):
                return
        self.rst.append({"by": by, "utc": utc, "seq": frame.seq, "forwarded": False})

    def _payload(self, frame: Frame, utc: int, initiator: bool) -> None:
        if frame.flags & FIN:
            self.fin = self.fin or utc
        if not frame.payload:
            return
        self.stopped -= 1
        fresh = (self.forward if initiator else self.back).advance(frame.seq, frame.payload)
        if not fresh:
            self.retransmits += 1
            return
        last = self.activity[-1] if self.activity else None
        if last is None or utc - last[1] > GAP_NS or utc - last[0] > SPAN_NS:
            last = [utc, utc, 0, 0]
            self.activity.append(last)
        last[1] = utc
        last[2 if initiator else 3] += fresh

    def to_dict(self) -> dict[str, Any]:
        """The JSON line of this flow (`docs/json.md`, packets.jsonl)."""
        return {
            "kind": "tcp",
            "src": self.src,
            "sport": self.sport,
            "dst": self.dst,
            "dport": self.dport,
            "start": self.start,
            "end": self.end,
            "syn_in": self.syn_in,
            "syn_out": self.syn_out,
            "synack_in": self.synack_in,
            "synack_out": self.synack_out,
            "rst": [{k: r[k] for k in ("by", "utc", "forwarded")} for r in self.rst],
            "icmp": self.icmp,
            "fin": self.fin,
            "sent": self.forward.payload,
            "received": self.back.payload,
            "retransmits": self.retransmits,
            "stopped": self.stopped,
            "packets": self.packets,
            "activity": self.activity,
            "frames": self.frames,
        }


class Tracker:
    """Sorts TCP frames and the ICMP errors about them into flows."""

    def __init__(self) -> None:
        self.flows: list[TcpFlow] = []
        self._current: dict[Tuple4, TcpFlow] = {}

    def feed(self, frame: Frame, utc: int, number: int) -> None:
        """Takes one TCP frame."""
        key = (frame.src, frame.sport, frame.dst, frame.dport)
        flow = self._current.get(key)
        opening = frame.flags & (SYN | ACK | RST) == SYN
        if flow is None or (opening and _is_new(flow, frame)):
            flow = TcpFlow(*key, start=utc if opening else None, isn=frame.seq if opening else None)
            self.flows.append(flow)
            self._current[key] = flow
            self._current[(frame.dst, frame.dport, frame.src, frame.sport)] = flow
        flow.feed(frame, utc, number)

    def error(self, frame: Frame, utc: int, number: int) -> bool:
        """Takes an ICMP error; False when it is about no known TCP flow."""
        if frame.inner is None:
            return False
        flow = self._current.get(frame.inner[1:])
        if flow is None:
            return False
        flow.frames["icmp"].append(number)
        what = {"type": frame.icmp_type, "code": frame.icmp_code, "by": frame.src, "utc": utc}
        seen = any(e["type"] == what["type"] and e["code"] == what["code"] and e["by"] == what["by"] for e in flow.icmp)
        if not seen:
            flow.icmp.append(what)
        return True


def _is_new(flow: TcpFlow, frame: Frame) -> bool:
    """True when this SYN begins another connection; False for a repeat, and for the frame that leaves the router."""
    if flow.isn != frame.seq or (flow.src, flow.sport) != (frame.src, frame.sport):
        return True
    return not frame.outgoing and bool(flow.fin or flow.rst)
