# SPDX-License-Identifier: MIT
"""Connection tracking: what the router's kernel knows of each flow that the firewall let through (ctnetlink).

It is the *socket* witness: states of a TCP connection as the kernel followed them (SYN_SENT, SYN_RECV, ESTABLISHED …),
the mark that the allowing rule set, and packets and bytes in both directions. An attempt that a rule drops or refuses
never becomes a flow here; one that the responder refuses does (SYN_SENT, CLOSE). Needs the settings
`nf_conntrack_acct` and `nf_conntrack_timestamp`. Attribute numbers are those of linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from lab.observe.nfnetlink import (
    NESTED,
    Attributes,
    Message,
    NetfilterSocket,
    Overrun,
    attribute,
    attributes,
    number,
)

_SUBSYSTEM = 1
_NEW, _GET, _DELETE = 0, 1, 2
_GROUP_NEW, _GROUP_UPDATE, _GROUP_DESTROY = 1, 2, 3
_TUPLE_ORIG, _PROTOINFO, _MARK, _COUNTERS_ORIG, _COUNTERS_REPLY, _ID, _TIMESTAMP = 1, 4, 8, 9, 10, 12, 20
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_V4_SRC, _IP_V4_DST = 1, 2
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_PROTOINFO_TCP, _TCP_STATE = 1, 1
_PACKETS, _BYTES = 1, 2
_START, _STOP = 1, 2
_CREATE_FLAG = 0x400
TCP_STATES = (
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
)
_OPENED = frozenset({"ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT"})
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
_NUMBERS = {name: value for value, name in _PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One message about one flow: its tuple and whatever this message tells (None: nothing)."""

    event: str
    id: int | None
    proto: str
    src: str
    dst: str
    sport: int
    dport: int
    state: str | None = None
    mark: int | None = None
    packets_orig: int | None = None
    bytes_orig: int | None = None
    packets_reply: int | None = None
    bytes_reply: int | None = None
    start: int | None = None
    stop: int | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells flows apart: the kernel's id, with the tuple because ids are used again."""
        return (self.id, self.proto, self.src, self.sport, self.dst, self.dport)


@dataclass(slots=True)
class Flow:
    """One tracked flow. Times are UTC in ns; `orig` is initiator to responder, `reply` the way back; bytes are IP bytes.

    `history` holds (time of reading, state) in order. `stop` is set when the kernel forgot the flow, None while it still
    tracks it (also in TIME_WAIT).
    """

    proto: str
    src: str
    dst: str
    sport: int
    dport: int
    mark: int | None = None
    history: list[tuple[int, str]] = field(default_factory=list)
    packets_orig: int = 0
    bytes_orig: int = 0
    packets_reply: int = 0
    bytes_reply: int = 0
    start: int | None = None
    stop: int | None = None

    @property
    def state(self) -> str | None:
        """The last state seen."""
        return self.history[-1][1] if self.history else None

    @property
    def states(self) -> list[str]:
        """Names of the states in the order in which they were seen."""
        return [state for _, state in self.history]

    @property
    def established(self) -> bool:
        """True when both sides have spoken: the three-way handshake of TCP, a reply for other protocols."""
        if self.proto == "tcp":
            return not _OPENED.isdisjoint(self.states)
        return self.packets_reply > 0

    @property
    def bytes(self) -> int:
        """IP bytes both ways."""
        return self.bytes_orig + self.bytes_reply

    def learn(self, entry: Entry, now: int) -> None:
        """Adds what a message tells."""
        if entry.state is not None and entry.state != self.state:
            self.history.append((now, entry.state))
        for name in ("mark", "start", "stop", "packets_orig", "bytes_orig", "packets_reply", "bytes_reply"):
            value = getattr(entry, name)
            if value is not None:
                setattr(self, name, value)
        if entry.event == "destroy" and self.stop is None:
            self.stop = now

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, the last `state`, the names of all `states`, and `history` as [[utc, state], …]."""
        return {
            "proto": self.proto,
            "src": self.src,
            "dst": self.dst,
            "sport": self.sport,
            "dport": self.dport,
            "mark": self.mark,
            "state": self.state,
            "states": self.states,
            "history": [list(pair) for pair in self.history],
            "packets_orig": self.packets_orig,
            "bytes_orig": self.bytes_orig,
            "packets_reply": self.packets_reply,
            "bytes_reply": self.bytes_reply,
            "start": self.start,
            "stop": self.stop,
        }


def parse(message: Message) -> Entry | None:
    """What a ctnetlink message tells, or None when it is another kind or about another family than IPv4."""
    if message.type >> 8 != _SUBSYSTEM or message.type & 0xFF not in (_NEW, _DELETE):
        return None
    created = "new" if message.flags & _CREATE_FLAG else "update"
    event = "destroy" if message.type & 0xFF == _DELETE else created
    found = attributes(message.body)
    tuple_ = attributes(found.get(_TUPLE_ORIG, b""))
    ip, proto = attributes(tuple_.get(_TUPLE_IP, b"")), attributes(tuple_.get(_TUPLE_PROTO, b""))
    source, target = ip.get(_IP_V4_SRC), ip.get(_IP_V4_DST)
    if source is None or target is None or len(source) != 4 or len(target) != 4:
        return None
    protocol = number(proto.get(_PROTO_NUM)) or 0
    out, back = _counters(found, _COUNTERS_ORIG), _counters(found, _COUNTERS_REPLY)
    stamps = attributes(found.get(_TIMESTAMP, b""))
    return Entry(
        event=event,
        id=number(found.get(_ID)),
        proto=_PROTOCOLS.get(protocol, str(protocol)),
        src=socket.inet_ntoa(source),
        dst=socket.inet_ntoa(target),
        sport=number(proto.get(_PROTO_SRC_PORT)) or 0,
        dport=number(proto.get(_PROTO_DST_PORT)) or 0,
        state=_tcp_state(found),
        mark=number(found.get(_MARK)),
        packets_orig=out[0],
        bytes_orig=out[1],
        packets_reply=back[0],
        bytes_reply=back[1],
        start=number(stamps.get(_START)),
        stop=number(stamps.get(_STOP)),
    )


def _counters(found: Attributes, which: int) -> tuple[int | None, int | None]:
    inner = attributes(found.get(which, b""))
    return number(inner.get(_PACKETS)), number(inner.get(_BYTES))


def _tcp_state(found: Attributes) -> str | None:
    raw = attributes(attributes(found.get(_PROTOINFO, b"")).get(_PROTOINFO_TCP, b"")).get(_TCP_STATE)
    if not raw:
        return None
    return TCP_STATES[raw[0]] if raw[0] < len(TCP_STATES) else str(raw[0])


class Table:
    """The tracking table of a namespace: list and delete. Calls block for milliseconds; use a thread."""

    def __init__(self, netns: int | None) -> None:
        self._netns = netns

    def entries(self) -> list[Entry]:
        """Every IPv4 flow that the kernel tracks now.

        Raises:
            OSError: the kernel refuses.
        """
        with contextlib.closing(NetfilterSocket(self._netns)) as netlink:
            found = [parse(message) for message in netlink.dump(_SUBSYSTEM << 8 | _GET, socket.AF_INET)]
        return [entry for entry in found if entry is not None]

    def delete(self, entries: Iterable[Entry]) -> int:
        """Forgets TCP and UDP flows; returns how many were still there."""
        gone = 0
        with contextlib.closing(NetfilterSocket(self._netns)) as netlink:
            for entry in entries:
                if entry.proto not in ("tcp", "udp"):
                    continue
                try:
                    netlink.request(_SUBSYSTEM << 8 | _DELETE, _tuple(entry), socket.AF_INET)
                    gone += 1
                except OSError as exc:
                    if exc.errno != errno.ENOENT:  # it may have ended by itself
                        raise
        return gone


def _tuple(entry: Entry) -> bytes:
    ip = attribute(_IP_V4_SRC, socket.inet_aton(entry.src)) + attribute(_IP_V4_DST, socket.inet_aton(entry.dst))
    proto = (
        attribute(_PROTO_NUM, bytes([_NUMBERS[entry.proto]]))
        + attribute(_PROTO_SRC_PORT, entry.sport.to_bytes(2, "big"))
        + attribute(_PROTO_DST_PORT, entry.dport.to_bytes(2, "big"))
    )
    inner = attribute(_TUPLE_IP | NESTED, ip) + attribute(_TUPLE_PROTO | NESTED, proto)
    return attribute(_TUPLE_ORIG | NESTED, inner)


class FlowReader:
    """Follows the flows of a namespace by the kernel's events inside an asyncio loop.

    `flows()` is what is known so far; `stop()` adds the counters of flows that have not ended and returns all. Flows
    that were there before `start` are not listed unless `earlier` is true. `lost` counts overruns of the buffer.
    """

    def __init__(self, netns: int | None, on_entry: Callable[[Entry], None] | None = None) -> None:
        self.lost = 0
        self._netns = netns
        self._on_entry = on_entry
        self._socket: NetfilterSocket | None = None
        self._file: TextIO | None = None
        self._flows: dict[tuple[Any, ...], Flow] = {}
        self._ended: list[Flow] = []
        self._ignored: set[tuple[Any, ...]] = set()

    @property
    def complete(self) -> bool:
        """True when no event was lost: then a missing flow means that none was tracked."""
        return self.lost == 0

    async def start(self, path: Path | None = None, *, earlier: bool = False) -> None:
        """Subscribes to events; with `path`, each flow is appended there as a JSON line when it ends, the rest by `stop`.

        Raises:
            OSError: the kernel refuses.
        """
        reader = NetfilterSocket(self._netns)
        try:
            for group in (_GROUP_NEW, _GROUP_UPDATE, _GROUP_DESTROY):
                reader.join(group)
            reader.sock.setblocking(False)
            # After the subscription, so that no flow falls between the two.
            before = await asyncio.to_thread(Table(self._netns).entries)
            self._file = path.open("a", encoding="utf-8") if path is not None else None
        except BaseException:
            reader.close()
            raise
        self._socket = reader
        for entry in before:
            if earlier:
                self._learn(entry, time.time_ns())
            else:
                self._ignored.add(entry.key)
        asyncio.get_running_loop().add_reader(reader, self._read)

    def flows(self) -> list[Flow]:
        """Every flow so far, ended ones included, in the order of their start."""
        return sorted([*self._ended, *self._flows.values()], key=lambda flow: flow.start or 0)

    async def refresh(self) -> list[Flow]:
        """`flows()` with the present counters of those that have not ended."""
        entries = await asyncio.to_thread(Table(self._netns).entries)
        while self._socket is not None and self._read():
            pass
        now = time.time_ns()
        for entry in entries:
            if entry.key in self._flows:
                self._flows[entry.key].learn(entry, now)
        return self.flows()

    async def stop(self) -> list[Flow]:
        """Reads what is left, takes the last counters and ends; returns every flow."""
        if self._socket is None:
            return self.flows()
        asyncio.get_running_loop().remove_reader(self._socket)
        try:
            found = await self.refresh()
            self._write(*(flow.to_dict() for flow in self._flows.values()))
        finally:
            self._socket.close()
            self._socket = None
            if self._file is not None:
                self._file.close()
                self._file = None
        return found

    def _read(self) -> bool:
        """Handles one datagram; False when there is none."""
        assert self._socket is not None
        try:
            found = self._socket.read()
        except Overrun:
            self.lost += 1
            return True
        if found is None:
            return False
        now = time.time_ns()
        for message in found:
            entry = parse(message)
            if entry is not None:
                self._learn(entry, now)
        return True

    def _learn(self, entry: Entry, now: int) -> None:
        if entry.key in self._ignored:
            if entry.event == "destroy":
                self._ignored.discard(entry.key)
            return
        flow = self._flows.get(entry.key)
        if flow is None:
            flow = Flow(entry.proto, entry.src, entry.dst, entry.sport, entry.dport, start=now)
            self._flows[entry.key] = flow
        flow.learn(entry, now)
        if entry.event == "destroy":
            self._ended.append(self._flows.pop(entry.key))
            self._write(flow.to_dict())
        if self._on_entry is not None:
            self._on_entry(entry)

    def _write(self, *records: dict[str, Any]) -> None:
        if self._file is not None and records:
            self._file.write("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records))
            self._file.flush()
