# SPDX-License-Identifier: MIT
"""The host: asyncio accepts on 902 and serves the fabric socket; every connection is served by a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fakes.core import fabric
from fakes.core.certificate import thumbprint
from fakes.core.fabric import FabricError
from fakes.esxi.authd import Dialogue
from fakes.esxi.connection import Connection, Limits
from fakes.esxi.datastores import Datastores, Watchdog
from fakes.esxi.journal import Journal
from fakes.esxi.tickets import Ticket, TicketRefused, TicketStore

MAX_CLIENTS = 512  # connections in any state, so that clients that never log in cannot take all threads


class EsxiHost:
    """One fake host.

    Args:
        name: as in the inventory; names the fabric socket.
        address: in `host.info`.
        certificate: PEM with certificate and key.
        fabric_folder: where storage answers and where `esxi-<name>.sock` is made.
        mounted: the host's datastores; None = all that the fabric has.
        accounts: the host's own accounts for USER and PASS.
        keylog: TLS key log for captures.
    """

    def __init__(
        self,
        *,
        name: str,
        address: str,
        certificate: Path,
        fabric_folder: Path,
        mounted: frozenset[str] | None = None,
        limits: Limits | None = None,
        journal: Journal | None = None,
        accounts: Mapping[str, str] | None = None,
        keylog: Path | None = None,
        storage_deadline: float = 30.0,
    ) -> None:
        self.name = name
        self.address = address
        self.sha1 = thumbprint(certificate, "sha1")
        self.sha256 = thumbprint(certificate, "sha256")
        self.tickets = TicketStore()
        self.permit: Callable[[str, str | None, str], None] | None = None  # of a ticket for a file, where 443 is served
        self._limits = limits or Limits()
        self._journal = journal or Journal(None)
        self._accounts = accounts or {}
        self._fabric = fabric_folder
        self._mounted = mounted
        self._watchdog = Watchdog(storage_deadline)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        self._tls.num_tickets = 0  # nothing may follow the dialogue inside TLS
        if keylog is not None:
            self._tls.keylog_filename = str(keylog)
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._nfc: set[socket.socket] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._servers: list[asyncio.Server] = []

    async def start(self, listener: socket.socket) -> None:
        """Accepts on `listener` and answers on the fabric; returns at once."""
        listener.setblocking(False)
        self._servers.append(await fabric.serve(self._fabric / f"esxi-{self.name}.sock", self._handle))
        self._tasks += [asyncio.create_task(self._accept(listener)), asyncio.create_task(self._watch())]

    async def stop(self) -> None:
        """Ends every connection; returns when their threads are gone (or after five seconds)."""
        for task in self._tasks:
            task.cancel()
        for server in self._servers:
            server.close()
        with self._lock:
            clients = dict(self._clients)
        for sock in clients:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in clients.values():
            await asyncio.to_thread(thread.join, 5.0)
        (self._fabric / f"esxi-{self.name}.sock").unlink(missing_ok=True)
        self._journal.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    sock, address = await loop.sock_accept(listener)
                except OSError:  # the client was gone already, or no descriptor is free
                    await asyncio.sleep(0.05)
                    continue
                self._begin(sock, (str(address[0]), int(address[1])))

    def _begin(self, sock: socket.socket, client: tuple[str, int]) -> None:
        with self._lock:
            if len(self._clients) >= MAX_CLIENTS:
                sock.close()
                return
            thread = threading.Thread(target=self._serve, args=(sock, client), daemon=True, name=f"902 {client[0]}")
            self._clients[sock] = thread
        thread.start()

    def _serve(self, sock: socket.socket, client: tuple[str, int]) -> None:
        try:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            dialogue = Dialogue(
                thumbprint_sha256=self.sha256,
                redeem=lambda session_id: self._redeem(sock, session_id),
                accounts=self._accounts,
            )
            Connection(
                sock,
                client,
                tls=self._tls,
                limits=self._limits,
                journal=self._journal,
                dialogue=dialogue,
                datastores=lambda: Datastores(self._fabric, self._mounted, self._watchdog),
            ).run()
        finally:
            with self._lock:
                self._clients.pop(sock, None)
                self._nfc.discard(sock)

    def _redeem(self, sock: socket.socket, session_id: str) -> Ticket:
        """Takes the ticket and one of the host's NFC connections, or neither."""
        with self._lock:
            if len(self._nfc) >= self._limits.connections:
                raise TicketRefused("limit")
            ticket = self.tickets.redeem(session_id)
            self._nfc.add(sock)
            return ticket

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._watchdog.limit / 4))
            self._watchdog.expire()

    async def _handle(self, method: str, params: dict[str, Any]) -> Any:
        match method:
            case "ticket.issue":
                self.tickets.issue(
                    str(params["session_id"]),
                    vm=str(params["vm"]),
                    datastore=str(params["datastore"]),
                    folder=str(params["folder"]),
                    read_only=bool(params["read_only"]),
                    ttl=float(params["ttl"]),
                )
                return None
            case "file.permit" if self.permit is not None:
                verb = params.get("verb")
                self.permit(str(params["id"]), None if verb is None else str(verb), str(params["url"]))
                return None
            case "host.info":
                return {
                    "name": self.name,
                    "address": self.address,
                    "thumbprint_sha1": self.sha1,
                    "thumbprint_sha256": self.sha256,
                }
            case _:
                raise FabricError("unknown-method", f"esxi-{self.name} has no {method}")
