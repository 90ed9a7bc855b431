# SPDX-License-Identifier: MIT
"""Tickets: single-use permissions to open the files of one VM, stored by vCenter with the host that will redeem them.

The session id is a secret: it stands in no log; `digest` (first 8 characters of its SHA-256) names it in journals.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_TICKETS = 10_000


class TicketRefused(Exception):
    """`reason`: the ticket is `unknown`, `used` or `expired`, or the host is at its `limit` of connections."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"ticket {reason}")
        self.reason = reason


def digest(session_id: str) -> str:
    """How journals name a ticket."""
    return hashlib.sha256(session_id.encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Ticket:
    """What its holder may do: files of `folder` on `datastore`, of VM `vm`; `read_only` or not. `expires` is monotonic."""

    vm: str
    datastore: str
    folder: str
    read_only: bool
    expires: float
    session: str = field(default="")

    def covers(self, datastore: str, path: str) -> bool:
        """True when `path` (below the datastore, already normal) lies in the folder of the ticket."""
        return datastore == self.datastore and path.startswith(self.folder + "/")


class TicketStore:
    """The tickets of one host; thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._valid: dict[str, Ticket] = {}
        self._gone: dict[str, str] = {}

    def issue(self, session_id: str, *, vm: str, datastore: str, folder: str, read_only: bool, ttl: float) -> Ticket:
        """Stores a ticket that lives `ttl` seconds. Raises ValueError for one that cannot be."""
        if not session_id or len(session_id) > 128 or any(c.isspace() for c in session_id):
            raise ValueError("session_id must be 1 to 128 characters without blanks")
        if not vm or not datastore or not folder or ttl <= 0:
            raise ValueError("a ticket needs vm, datastore, folder and a positive ttl")
        ticket = Ticket(vm, datastore, folder.strip("/"), read_only, self._clock() + ttl, digest(session_id))
        with self._lock:
            if session_id in self._valid or session_id in self._gone:
                raise ValueError("this session id was issued before")
            self._valid[session_id] = ticket
            while len(self._valid) > MAX_TICKETS:
                self._forget(next(iter(self._valid)), "expired")
        return ticket

    def redeem(self, session_id: str) -> Ticket:
        """Takes the ticket: nobody can redeem it again. Raises TicketRefused."""
        with self._lock:
            ticket = self._valid.get(session_id)
            if ticket is None:
                raise TicketRefused(self._gone.get(session_id, "unknown"))
            if self._clock() >= ticket.expires:
                self._forget(session_id, "expired")
                raise TicketRefused("expired")
            self._forget(session_id, "used")
            return ticket

    def _forget(self, session_id: str, reason: str) -> None:
        del self._valid[session_id]
        self._gone[session_id] = reason
        while len(self._gone) > MAX_TICKETS:
            del self._gone[next(iter(self._gone))]
