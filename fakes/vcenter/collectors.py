# SPDX-License-Identifier: MIT
"""Each session's default PropertyCollector, as one that updates really reach.

vcsim keeps its listeners by reference, and all sessions' default collectors have the same one: when a second session
begins to wait for updates, the first never hears of any again (simulator/registry.go, AddHandler). So calls about
filters and updates on the default collector are led to a collector made for that session, whose reference is its own.

Two calls that vcsim lacks are made of those that it has: CheckForUpdates is a WaitForUpdatesEx that does not wait, and
CancelRetrievePropertiesEx reads the rest of the pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from xml.sax.saxutils import escape

from pyVmomi import vmodl

from fakes.vcenter import soap
from fakes.vcenter.calls import Context, Handler
from fakes.vcenter.http import Reply
from fakes.vcenter.upstream import UpstreamGone

_THIS = re.compile(rb"(<(?:[\w.-]+:)?_this\b[^>]*>)\s*([^<\s]*)\s*(</)")
_TOKEN = re.compile(rb"<token>([^<]*)</token>")
_COOKIE = re.compile(r"vmware_soap_session=\"?([^;\"\s]+)")


class Collectors:
    """The calls that are led elsewhere."""

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        led = ("CreateFilter", "WaitForUpdates", "WaitForUpdatesEx", "CancelWaitForUpdates")
        return {
            **dict.fromkeys(led, self.lead),
            "CheckForUpdates": self.check,
            "CancelRetrievePropertiesEx": self.cancel,
            "Logout": self.logout,
        }

    async def lead(self, context: Context) -> Reply:
        """Forwards the call to the session's own collector, if it is one on the default collector."""
        default = context.world.admin.content.propertyCollector
        cookie = _cookie(context)
        if context.call.this_id != default._moId or cookie is None:
            return await context.forward()
        making = context.world.collectors.get(cookie)
        if making is None:
            making = asyncio.ensure_future(context.session.call(default, "CreatePropertyCollector"))
            context.world.collectors[cookie] = making
        try:
            own = (await asyncio.shield(making))._moId
        except vmodl.MethodFault:
            context.world.collectors.pop(cookie, None)
            return await context.forward()  # not logged in: vcsim's own answer says so
        text = escape(own).encode()
        context.raw = _THIS.sub(lambda match: match[1] + text + match[3], context.raw, count=1)
        return await context.forward()

    async def check(self, context: Context) -> Reply:
        """CheckForUpdates(version)."""
        version = escape(context.call.leaf.get("version", ""))
        inner = f"<version>{version}</version><options><maxWaitSeconds>0</maxWaitSeconds></options>"
        _become(context, "WaitForUpdatesEx", inner)
        reply = await self.lead(context)
        if isinstance(reply.body, bytes):
            reply.body = reply.body.replace(b"WaitForUpdatesExResponse", b"CheckForUpdatesResponse")
        return reply

    async def cancel(self, context: Context) -> Reply:
        """CancelRetrievePropertiesEx(token)."""
        token: str | None = context.call.leaf.get("token", "")
        while token is not None:
            _become(context, "ContinueRetrievePropertiesEx", f"<token>{escape(token)}</token>")
            reply = await context.forward()
            if reply.status != 200:
                return reply
            match = _TOKEN.search(reply.body if isinstance(reply.body, bytes) else b"")
            token = match[1].decode() if match else None
        return Reply.xml(200, soap.reply("CancelRetrievePropertiesEx"))

    async def logout(self, context: Context) -> Reply:
        """Forgets the session's collector with the session."""
        making = context.world.collectors.pop(_cookie(context) or "", None)
        if making is not None:
            # the session may have ended by itself; Logout says so
            with contextlib.suppress(vmodl.MethodFault, UpstreamGone, TimeoutError):
                await context.session.call(await making, "DestroyPropertyCollector")
        return await context.forward()


def _become(context: Context, method: str, inner: str) -> None:
    """Makes what is forwarded another call on the same collector."""
    this = f'<_this type="PropertyCollector">{escape(context.call.this_id)}</_this>'
    context.raw = soap.envelope(f'<{method} xmlns="{soap.VIM25}">{this}{inner}</{method}>')


def _cookie(context: Context) -> str | None:
    match = _COOKIE.search(context.headers.get("cookie") or "")
    return match[1] if match else None
