# SPDX-License-Identifier: MIT
"""Who may use the paths of files (`/folder`, `/nfc`, `/guestFile`), which vcsim serves to anybody.

A live session's cookie, HTTP Basic, or a ticket of AcquireGenericServiceTicket, which makes the one request that it was
asked for: its path, datastore and method (API reference, SessionManager). vcsim makes tickets and never looks at them.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import time
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from pyVmomi import vim, vmodl

from fakes.vcenter import soap
from fakes.vcenter.admin import AdminSession
from fakes.vcenter.calls import Context, Handler, SoapFault
from fakes.vcenter.http import Reply, Request
from fakes.vcenter.world import World

TTL = 120.0  # seconds; the real life is not known
MAX_TICKETS = 10_000
_ID = re.compile(rb"<id>([^<]+)</id>")
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

    def __init__(self) -> None:
        self._tickets: dict[str, _Permit] = {}

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
            while len(self._tickets) >= MAX_TICKETS:
                del self._tickets[next(iter(self._tickets))]
            self._tickets[match[1].decode()] = _Permit(method, _place(spec.url), time.monotonic() + TTL)
        return reply

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
