# SPDX-License-Identifier: MIT
"""Who may use the paths of files (`/folder`, `/nfc`, `/guestFile`), which vcsim serves to anybody.

A live session's cookie, HTTP Basic, or a ticket of AcquireGenericServiceTicket, which makes the one request that it was
asked for: its path, datastore and method (API reference, SessionManager). vcsim makes tickets and never looks at them.
A vCenter's ticket for a path of a host is that host's to honour: it is left there over the fabric.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from pyVmomi import vim, vmodl

from fakes.core import fabric
from fakes.core.fabric import FabricError
from fakes.vcenter import soap
from fakes.vcenter.admin import AdminSession
from fakes.vcenter.calls import Context, Handler, SoapFault
from fakes.vcenter.http import Reply, Request
from fakes.vcenter.world import World

TTL = 120.0  # seconds; the real life is not known
MAX_TICKETS = 10_000
_ID = re.compile(rb"<id>([^<]+)</id>")
_HOST_NAME = re.compile(rb"<hostName>[^<]*</hostName>(?:<sslThumbprint>[^<]*</sslThumbprint>)?")
_TICKET = re.compile(r"(?:^|;)\s*vmware_cgi_ticket=\"?([^;\"\s]+)")


@dataclass(frozen=True)
class _Permit:
    """One request. `method` is None when the client did not say."""

    method: str | None
    place: tuple[str, str]
    expires: float


def _place(url: str) -> tuple[str, str]:
    """Path and datastore: what a ticket is for. The host and the datacenter's path differ between the two views."""
    parts = urlsplit(url)
    return unquote(parts.path), (parse_qs(parts.query).get("dsName") or [""])[0]


class FileAccess:
    """Decides on requests for files; holds the tickets that were not used yet."""

    def __init__(self, hosts: dict[str, str] | None = None, folder: Path | None = None) -> None:
        """`hosts`: address → name, of those that a vCenter gives tickets for; `folder` of the fabric."""
        self._tickets: dict[str, _Permit] = {}
        self._hosts = hosts or {}
        self._fabric = folder

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return {"AcquireGenericServiceTicket": self.acquire}

    async def acquire(self, context: Context) -> Reply:
        """AcquireGenericServiceTicket(spec)."""
        await context.require_login()
        spec = soap.arguments(context.raw).get("spec")
        reply = await context.forward()
        match = _ID.search(reply.body) if reply.status == 200 and isinstance(reply.body, bytes) else None
        if match and isinstance(spec, vim.SessionManager.HttpServiceRequestSpec):
            method = spec.method.upper().removeprefix("HTTP") if spec.method else None
            address = urlsplit(spec.url).hostname or ""
            if self._fabric is not None and address in self._hosts:
                thumbprint = await self._leave(address, match[1].decode(), method, spec.url)
                told = f"<hostName>{address}</hostName><sslThumbprint>{thumbprint}</sslThumbprint>"
                reply.body = _HOST_NAME.sub(told.encode(), reply.body, count=1)  # type: ignore[arg-type]
            else:
                self.admit(match[1].decode(), method, spec.url)
        return reply

    async def _leave(self, address: str, ticket: str, method: str | None, url: str) -> str:
        """Leaves a ticket with a host; returns the thumbprint of its certificate. Raises SoapFault(HostNotReachable)."""
        assert self._fabric is not None
        path = self._fabric / f"esxi-{self._hosts[address]}.sock"
        try:
            await fabric.call(path, "file.permit", id=ticket, verb=method, url=url)
            return str((await fabric.call(path, "host.info"))["thumbprint_sha1"])
        except FabricError as exc:
            raise SoapFault(vmodl.fault.HostNotReachable(), f"The host {address} takes no ticket: {exc}") from exc

    def admit(self, ticket: str, method: str | None, url: str) -> None:
        """Takes a ticket for one request: its method (None: any), and the URL's path and datastore."""
        while len(self._tickets) >= MAX_TICKETS:
            del self._tickets[next(iter(self._tickets))]
        self._tickets[ticket] = _Permit(method, _place(url), time.monotonic() + TTL)

    async def allows(self, world: World, request: Request) -> bool:
        """Whether the request may go on; a ticket is used up by that."""
        if self._redeem(request):
            return True
        if (request.headers.get("authorization") or "").lower().startswith("basic "):
            return await _basic(world, request)
        call = soap.Call(soap.VIM25, "Fetch", "SessionManager", "SessionManager")
        with contextlib.suppress(SoapFault):
            await Context(world, call, b"", request.headers, request.client).require_login()
            return True
        return False

    def _redeem(self, request: Request) -> bool:
        match = _TICKET.search(request.headers.get("cookie") or "")
        permit = self._tickets.pop(match[1], None) if match else None
        return (
            permit is not None
            and time.monotonic() < permit.expires
            and permit.method in (None, request.method)
            and permit.place == _place(request.target)
        )


async def _basic(world: World, request: Request) -> bool:
    """A login for this one request."""
    try:
        text = base64.b64decode((request.headers.get("authorization") or "")[6:].strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return False
    username, _, password = text.partition(":")
    session = AdminSession(world.upstream)
    try:
        await session.login(username, password)
        await session.call(session.content.sessionManager, "Logout")
    except vmodl.MethodFault:
        return False
    return True
