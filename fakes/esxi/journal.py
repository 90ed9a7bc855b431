# SPDX-License-Identifier: MIT
"""The host's journal: one JSON object a line, `{utc, mono, client, event, …}` (docs/architecture.md, evidence files).

event     further fields
connect   -                                        a client connected to 902
tls       service null, version                    the clear greeting was answered by a TLS handshake
proxy     session, service, code                   the ticket was accepted: NFC begins
refused   session, code, reason, path              a line of authd, an open or an IO was refused
open      session, service, path, handle           a file was opened
close     session, service, bytes_read, bytes_written, reason     the connection ended (file bytes, not wire bytes)

Secrets never enter it: `session` is the digest of the ticket.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Journal:
    """Appends to a file with one O_APPEND write a line; without a file it does nothing. Thread-safe."""

    def __init__(self, path: Path | None) -> None:
        self._fd = -1
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, client: tuple[str, int], event: str, **fields: Any) -> None:
        """Writes one line; `utc` and `mono` are nanoseconds."""
        if self._fd < 0:
            return
        entry = {"utc": time.time_ns(), "mono": time.monotonic_ns(), "client": list(client), "event": event, **fields}
        os.write(self._fd, json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
