# SPDX-License-Identifier: MIT
"""The guest's end of Tools: a process in the guest that tells the hypervisor what it sees of itself.

It speaks up when it starts, when something changed, and every `PERIOD` seconds. When it ends, the hypervisor notices that
its connection ended: Tools are not running any more.
"""

from __future__ import annotations

import fcntl
import platform
import signal
import socket
import struct
import threading
from pathlib import Path

from fakes.tools.rpci import RpciClient, RpciError

PERIOD = 10.0
_SIOCGIFADDR = 0x8915
_VERSION = "tools.set.versiontype 12352 4"


def addresses() -> list[str]:
    """IPv4 addresses of this guest's interfaces, without loopback."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # an interface without an address
            found.append(socket.inet_ntoa(answer[20:24]))
    return [address for address in found if not address.startswith("127.")]


def facts(preferred: str) -> list[str]:
    """The requests that describe this guest; `preferred` comes first among its addresses if it has it."""
    mine = sorted(addresses(), key=lambda address: address != preferred)
    system = _system()
    return [
        _VERSION,
        f"info-set guestinfo.hostname {socket.gethostname()}",
        f"info-set guestinfo.os.fullname {system}",
        f"info-set guestinfo.ip {mine[0] if mine else ''}",
        f"info-set guestinfo.addresses {' '.join(mine)}",
    ]


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def run(path: Path, preferred: str, period: float = PERIOD) -> int:
    """Reports until SIGTERM. `path` is the guest's RPCI socket."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    client = RpciClient(path)
    delay = 0.1
    while not stop.is_set():
        try:
            for request in facts(preferred):
                client.ask(request)
            delay = period
        except RpciError:
            delay = min(max(delay * 2, 0.1), 2.0) if delay < period else 0.1
        stop.wait(delay)
    client.close()
    return 0
