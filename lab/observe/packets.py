# SPDX-License-Identifier: MIT
"""A capture as flows, in a process of its own: `python -m lab.observe.packets capture.pcapng [UNTIL] > packets.jsonl`.

scapy reads the file here (GPL-2.0-only: nothing else of the lab imports it). One JSON object a line:

kind      fields
tcp       src, sport, dst, dport, start, end, syn_in, syn_out, synack_in, synack_out, rst[], icmp[], fin, sent, received,
          retransmits, stopped (data packets that came in and did not leave), packets, activity[[first, last, sent,
          received]…], frames{syn, rst, icmp}
other     protocol, src, sport, dst, dport, icmp (type/code or null), first, last, packets, incoming, outgoing, error
capture   packets, ignored (ARP, IPv6, loopback), first, last            always the last line; without it the file is cut

Packets later than UNTIL are left out: the capture is the last observer of a run to stop, and what it alone saw can not be
compared. Times are UTC nanoseconds; `frames` are frame numbers of the capture, counted from 1, as Wireshark does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.observe.headers import ICMP, ICMP_ERRORS, TCP, UDP, Frame, LinkTypeError, parse
from lab.observe.tcpflow import Tracker

_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}


def frames(path: Path) -> Iterator[tuple[int, int, Frame | None]]:
    """Frame number, UTC nanoseconds and headers of each packet of a pcapng file; headers are None for non-IPv4.

    Raises:
        LinkTypeError: not captured in cooked mode. ValueError: not a pcapng file.
    """
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapNgReader

    try:
        reader = RawPcapNgReader(str(path))
    except Scapy_Exception as exc:
        raise ValueError(f"{path.name}: {exc}") from exc
    with reader:
        for number, (data, meta) in enumerate(reader, 1):
            ticks = (meta.tshigh << 32) | meta.tslow
            yield number, ticks * 1_000_000_000 // meta.tsresol, parse(data, meta.linktype, meta.wirelen)


def read(path: Path, until: int | None = None) -> Iterator[dict[str, Any]]:
    """The lines described above, in order of each flow's first frame, the summary last."""
    tracker = Tracker()
    others: dict[tuple[Any, ...], dict[str, Any]] = {}
    count = ignored = 0
    first = last = None
    for number, utc, frame in frames(path):
        if until is not None and utc > until:
            continue
        count += 1
        first, last = first or utc, utc
        if frame is None or frame.src.startswith("127."):
            ignored += 1
        elif frame.protocol == TCP:
            tracker.feed(frame, utc, number)
        elif not (frame.protocol == ICMP and frame.icmp_type in ICMP_ERRORS and tracker.error(frame, utc, number)):
            _other(others, frame, utc)
    for flow in tracker.flows:
        yield flow.to_dict()
    yield from others.values()
    yield {"kind": "capture", "packets": count, "ignored": ignored, "first": first, "last": last}


def _other(found: dict[tuple[Any, ...], dict[str, Any]], frame: Frame, utc: int) -> None:
    icmp = f"{frame.icmp_type}/{frame.icmp_code}" if frame.protocol == ICMP else None
    key = (frame.protocol, frame.src, frame.sport, frame.dst, frame.dport, icmp)
    entry = found.get(key)
    if entry is None:
        entry = found[key] = {
            "kind": "other",
            "protocol": _NAMES.get(frame.protocol, str(frame.protocol)),
            "src": frame.src,
            "sport": frame.sport,
            "dst": frame.dst,
            "dport": frame.dport,
            "icmp": icmp,
            "error": frame.protocol == ICMP and frame.icmp_type in ICMP_ERRORS,
            "first": utc,
            "last": utc,
            "packets": 0,
            "incoming": 0,
            "outgoing": 0,
        }
    entry["packets"] += 1
    entry["last"] = utc
    entry["outgoing" if frame.outgoing else "incoming"] += 1


def main(argv: list[str]) -> int:
    """`packets FILE.pcapng [UNTIL]`: the lines on standard output; 2 when the file can not be read."""
    if not 1 <= len(argv) <= 2 or not all(a.isdigit() for a in argv[1:]):
        sys.stderr.write("usage: python -m lab.observe.packets FILE.pcapng [UNTIL, UTC ns]\n")
        return 2
    try:
        for line in read(Path(argv[0]), int(argv[1]) if argv[1:] else None):
            sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    except (OSError, ValueError, LinkTypeError) as exc:
        sys.stderr.write(f"{argv[0]}: {exc}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
