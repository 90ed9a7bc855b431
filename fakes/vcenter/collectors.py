# SPDX-License-Identifier: MIT
"""Each session's default PropertyCollector, as one that updates really reach.

vcsim keeps its listeners by reference, and all sessions' default collectors have the same one: when a second session
begins to wait for updates, the first never hears of any again (simulator/registry.go, AddHandler). So calls about
filters and updates on the default collector are led to a collector made for that session, whose reference is its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from xml.sax.saxutils import escape

from pyVmomi import vmodl

from fakes.vcenter.calls import Context, Handler
from fakes.vcenter.http import Reply
from fakes.vcenter.upstream import UpstreamGone

_THIS = re.compile(rb"(<(?:[\w.-]+:)?_this\b[^>]*>)\s*([^<\s]*)\s*(</)")
_COOKIE = re.compile(r"vmware_soap_session=\"?([^;\"\s]+)")


class Collectors:
    """The calls that are led elsewhere."""

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        led = ("CreateFilter", "WaitForUpdates", "WaitForUpdatesEx", "CancelWaitForUpdates", "CheckForUpdates")
        return {**dict.fromkeys(led, self.lead), "Logout": self.logout}

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

    async def logout(self, context: Context) -> Reply:
        """Forgets the session's collector with the session."""
        making = context.world.collectors.pop(_cookie(context) or "", None)
        if making is not None:
            # the session may have ended by itself; Logout says so
            with contextlib.suppress(vmodl.MethodFault, UpstreamGone, TimeoutError):
                await context.session.call(await making, "DestroyPropertyCollector")
        return await context.forward()


def _cookie(context: Context) -> str | None:
    match = _COOKIE.search(context.headers.get("cookie") or "")
    return match[1] if match else None
