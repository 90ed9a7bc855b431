# SPDX-License-Identifier: MIT
"""The gateway's journal: one JSON object a line for every SOAP call, and one more when a snapshot task ends. Times are nanoseconds.

Evidence for whoever judges a run; so it is written before the reply leaves. Never a password, cookie or ticket: callers
give `detail` field by field, and a ticket appears as the first eight characters of its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any, TextIO


def mark(secret: str) -> str:
    """A name for a secret that does not tell it."""
    return hashlib.sha256(secret.encode()).hexdigest()[:8]


# morefs of collectors and views carry the session's key, which is the cookie
_SESSION = re.compile(r"session\[([^\]]*)\]")


class Journal:
    """Appends to a file, or does nothing when there is none."""

    def __init__(self, path: Path | None) -> None:
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")

    def write(
        self,
        client: tuple[str, int] | None,
        method: str,
        this: str,
        status: int | None,
        fault: str | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """One entry; `status` is that of HTTP (None: not an answer to a client)."""
        if self._file is None:
            return
        entry = {
            "utc": time.time_ns(),
            "mono": time.monotonic_ns(),
            "client": list(client) if client else None,
            "method": method,
            "this": _SESSION.sub(lambda match: f"session[{mark(match[1])}]", this),
            "status": status,
            "fault": fault,
            "detail": detail,
        }
        self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
