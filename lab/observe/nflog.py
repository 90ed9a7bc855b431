# SPDX-License-Identifier: MIT
"""The firewall's log: one record per packet that a rule logs, with the rule's id, read over netlink (NFLOG).

Rules log with `log group 5 queue-threshold 1 prefix "<rule id>"` (`firewall_rules.render.nft`). The kernel numbers the
records of a group; a gap, or a full receive buffer, is a *loss*, and then the absence of a record proves nothing.
Attribute numbers are those of linux/netfilter/nfnetlink_log.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from lab.observe import namespaces
from lab.observe.nfnetlink import Message, NetfilterSocket, Overrun, attribute, attributes, number

GROUP = 5
SNAPLEN = 96
RECEIVE_BUFFER = 8 << 20
_SUBSYSTEM = 4
_PACKET, _CONFIG = _SUBSYSTEM << 8 | 0, _SUBSYSTEM << 8 | 1
_CMD_BIND = 1
_CFG_CMD, _CFG_MODE, _CFG_QTHRESH, _CFG_FLAGS = 1, 2, 5, 6
_COPY_PACKET = 2
_FLAG_SEQ, _FLAG_CONNTRACK = 1, 4
_MARK, _TIMESTAMP, _IN, _OUT, _PAYLOAD, _PREFIX, _SEQ, _CT = 2, 3, 4, 5, 9, 10, 12, 18
_CTA_MARK = 8
_TCP_FLAGS = ((0x02, "SYN"), (0x10, "ACK"), (0x01, "FIN"), (0x04, "RST"), (0x08, "PSH"), (0x20, "URG"))
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One logged packet.

    `utc` ns (the kernel's time stamp, else the time of reading), `prefix` the rule id, `inside`/`outside` names of the
    interface it came in by and would leave by, `mark` the connection's mark if this
    kernel hands it to the log, else the packet's (None when there is none; the prefix is the sure way to the rule), `flags` of TCP
    such as "SYN". Ports are 0 where the protocol has none; src and dst are empty for what is not IPv4.
    """

    utc: int
    prefix: str
    inside: str
    outside: str
    mark: int | None
    src: str
    dst: str
    sport: int
    dport: int
    proto: str
    flags: str
    length: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON line: the fields, with `in` and `out` for the interfaces."""
        fields = asdict(self)
        fields["in"], fields["out"] = fields.pop("inside"), fields.pop("outside")
        return fields


def parse(message: Message, interface: Callable[[int | None], str], now: int) -> tuple[LogRecord, int | None] | None:
    """The record of one message and its sequence number; None for a message of another kind."""
    if message.type != _PACKET:
        return None
    found = attributes(message.body)
    stamp = found.get(_TIMESTAMP)
    seconds, micros = struct.unpack(">QQ", stamp) if stamp and len(stamp) == 16 else (0, 0)
    tracked = attributes(found[_CT]).get(_CTA_MARK) if _CT in found else None
    mark = number(tracked) or number(found.get(_MARK))
    proto, src, dst, sport, dport, flags, length = _headers(found.get(_PAYLOAD, b""))
    record = LogRecord(
        utc=seconds * 10**9 + micros * 1000 if seconds else now,
        prefix=found.get(_PREFIX, b"").rstrip(b"\0").decode(errors="replace"),
        inside=interface(number(found.get(_IN))),
        outside=interface(number(found.get(_OUT))),
        mark=mark or None,
        src=src,
        dst=dst,
        sport=sport,
        dport=dport,
        proto=proto,
        flags=flags,
        length=length,
    )
    return record, number(found.get(_SEQ))


def _headers(packet: bytes) -> tuple[str, str, str, int, int, str, int]:
    """Protocol, addresses, ports, TCP flags and total length of an IPv4 packet, as much as the bytes show."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return "other", "", "", 0, 0, "", len(packet)
    header = (packet[0] & 15) * 4
    protocol, length = packet[9], int.from_bytes(packet[2:4], "big")
    src, dst = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    name = _PROTOCOLS.get(protocol, str(protocol))
    if protocol not in (6, 17) or len(packet) < header + 4:
        return name, src, dst, 0, 0, "", length
    sport, dport = struct.unpack_from(">HH", packet, header)
    flags = ""
    if protocol == 6 and len(packet) >= header + 14:
        flags = ",".join(word for bit, word in _TCP_FLAGS if packet[header + 13] & bit)
    return name, src, dst, sport, dport, flags, length


class LogReader:
    """Reads one NFLOG group of a namespace inside an asyncio loop. Only one reader can hold a group at a time.

    Use `start`, then `records()` or `on_record`, then `stop`. `received` counts records.
    """

    def __init__(
        self,
        netns: int | None,
        group: int = GROUP,
        on_record: Callable[[LogRecord], None] | None = None,
        receive_buffer: int = RECEIVE_BUFFER,
    ) -> None:
        self.received = 0
        self._gaps = 0
        self._overrun = False
        self._netns = netns
        self._group = group
        self._receive_buffer = receive_buffer
        self._on_record = on_record
        self._socket: NetfilterSocket | None = None
        self._file: TextIO | None = None
        self._next: int | None = None
        self._interfaces: dict[int, str] = {}
        self._queues: list[asyncio.Queue[LogRecord | None]] = []

    @property
    def lost(self) -> int:
        """Records that are missing. After a full buffer their number shows with the next record; until then it is 1."""
        return self._gaps + (1 if self._overrun else 0)

    @property
    def complete(self) -> bool:
        """True when no record was lost: then a missing record means that no rule logged the packet."""
        return self.lost == 0

    async def start(self, path: Path | None = None) -> None:
        """Binds the group and begins to read; with `path`, each record is appended there as a JSON line.

        Raises:
            OSError: the kernel refuses (EBUSY or EPERM: another reader holds the group).
        """
        reader = NetfilterSocket(self._netns, self._receive_buffer)
        try:
            for body in (
                attribute(_CFG_CMD, bytes([_CMD_BIND])),
                attribute(_CFG_MODE, struct.pack(">IBB", SNAPLEN, _COPY_PACKET, 0)),
                attribute(_CFG_QTHRESH, struct.pack(">I", 1)),
            ):
                reader.request(_CONFIG, body, resource=self._group)
            self._ask_for(reader, _FLAG_SEQ | _FLAG_CONNTRACK, _FLAG_SEQ)
            reader.sock.setblocking(False)
            self._file = path.open("a", encoding="utf-8") if path is not None else None
        except BaseException:
            reader.close()
            raise
        self._socket = reader
        self._next = None
        asyncio.get_running_loop().add_reader(reader, self._read)

    def _ask_for(self, reader: NetfilterSocket, *choices: int) -> None:
        """The first set of extras that this kernel knows (connection marks need the ctnetlink hook)."""
        for flags in choices:
            try:
                reader.request(_CONFIG, attribute(_CFG_FLAGS, struct.pack(">H", flags)), resource=self._group)
                return
            except OSError as exc:
                if flags == choices[-1] or exc.errno != errno.EOPNOTSUPP:
                    raise

    async def records(self) -> AsyncIterator[LogRecord]:
        """Records as they come, from now until `stop`."""
        queue: asyncio.Queue[LogRecord | None] = asyncio.Queue()
        self._queues.append(queue)
        try:
            while (record := await queue.get()) is not None:
                yield record
        finally:
            self._queues.remove(queue)

    async def stop(self) -> None:
        """Reads what the kernel has delivered, then lets go of the group."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        try:
            while self._read():
                pass
        finally:
            self._socket.close()
            self._socket = None
            if self._file is not None:
                self._file.close()
                self._file = None
            for queue in self._queues:
                queue.put_nowait(None)

    def _read(self) -> bool:
        """Handles one datagram; False when there is none."""
        assert self._socket is not None
        try:
            found = self._socket.read()
        except Overrun:
            self._overrun = True
            return True
        if found is None:
            return False
        now = time.time_ns()
        lines = []
        for message in found:
            parsed = parse(message, self._interface, now)
            if parsed is None:
                continue
            record, sequence = parsed
            self._count(sequence)
            lines.append(json.dumps(record.to_dict(), separators=(",", ":")))
            self._deliver(record)
        if self._file is not None and lines:
            self._file.write("\n".join(lines) + "\n")
            self._file.flush()
        return True

    def _count(self, sequence: int | None) -> None:
        self.received += 1
        if sequence is None:
            return
        self._overrun = False
        if self._next is not None:
            self._gaps += (sequence - self._next) & 0xFFFFFFFF
        self._next = (sequence + 1) & 0xFFFFFFFF

    def _deliver(self, record: LogRecord) -> None:
        if self._on_record is not None:
            self._on_record(record)
        for queue in self._queues:
            queue.put_nowait(record)

    def _interface(self, index: int | None) -> str:
        if index is None:
            return ""
        if index not in self._interfaces:
            self._interfaces.update(_interface_names(self._netns))
            self._interfaces.setdefault(index, str(index))
        return self._interfaces[index]


def _interface_names(netns: int | None) -> dict[int, str]:
    """{index: name} of the interfaces of a namespace, asked on a thread that ends afterwards."""
    found: dict[int, str] = {}

    def ask() -> None:
        with contextlib.suppress(OSError):
            if netns is not None:
                namespaces.enter(netns)
            found.update(socket.if_nameindex())

    thread = threading.Thread(target=ask, name="interface-names")
    thread.start()
    thread.join()
    return found
