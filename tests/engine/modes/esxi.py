# SPDX-License-Identifier: MIT
"""A fake ESXi host in a process of its own, serving a disk image; and sockets that answer 902 wrongly."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.modes.ticket import Ticket


def sample(size: int, seed: int = 7) -> bytes:
    """Bytes of a disk: random, text, and holes, in areas that do not end on cluster boundaries."""
    rng = random.Random(seed)
    content = bytearray(size)
    at = 0
    while at < size:
        length = min(rng.choice((512, 3000, 65536, 200_000)), size - at)
        kind = rng.randrange(3)
        if kind == 0:
            content[at : at + length] = rng.randbytes(length)
        elif kind == 1:
            content[at : at + length] = (b"line %d of a file\n" % at * (length // 10 + 1))[:length]
        at += length
    return bytes(content)


@contextlib.contextmanager
def host(image: Path, *options: str) -> Iterator[dict[str, Any]]:
    """A lone host; gives its announcement (address, port, thumbprints, path, vmx, tickets)."""
    command = [sys.executable, "-m", "fakes.esxi", "--listen", "127.0.0.1:0", "--image", str(image), "--tickets", "40"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(10)


def ticket(announcement: dict[str, Any], **changes: Any) -> Ticket:
    """The next of the host's tickets."""
    fields = {
        "host": announcement["address"],
        "port": announcement["port"],
        "thumbprint": announcement["thumbprint_sha1"],
        "service": "vpxa-nfc",
        **changes,
    }
    return Ticket(**{"session": fields.get("session") or announcement["tickets"].pop(), **fields})


@contextlib.contextmanager
def impostor(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port where every connection is handed to `behave` and then closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        behave(connection)
                        connection.shutdown(socket.SHUT_RDWR)  # also when another thread still reads from it

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
