# SPDX-License-Identifier: MIT
"""A SOAP call on its way through the gateway (`Context`), and the ways it can end: a reply, or a `SoapFault`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim, vmodl

from fakes.vcenter import soap
from fakes.vcenter.admin import AdminSession
from fakes.vcenter.http import Headers, Reply
from fakes.vcenter.world import World

FORWARD_DEADLINE = 120.0
POLL_DEADLINE = 24 * 3600.0  # WaitForUpdates without a limit waits for as long as the client stays
_POLLS = frozenset(("WaitForUpdates", "WaitForUpdatesEx", "CheckForUpdates"))
_DROPPED = ("host", "accept-encoding", "content-length", "authorization")


class SoapFault(Exception):
    """The call ends with a typed fault."""

    def __init__(self, value: Any, message: str = "") -> None:
        super().__init__(message or value.msg or type(value).__name__)
        self.value = value
        self.message = message or value.msg or ""


def fault_name(value: Any) -> str:
    """`InvalidArgument` of a pyVmomi fault."""
    return type(value).__name__.rpartition(".")[2]


def invalid_argument(name: str) -> SoapFault:
    """A parameter is missing or wrong."""
    return SoapFault(
        vmodl.fault.InvalidArgument(invalidProperty=name), f"A specified parameter was not correct: {name}"
    )


def not_found(reference: Any) -> SoapFault:
    """The object is unknown."""
    return SoapFault(
        vmodl.fault.ManagedObjectNotFound(obj=reference),
        "The object has already been deleted or has not been completely created",
    )


@dataclass
class Context:
    """One call: who sent it, its bytes, what it is, and the world that it meets. `detail` goes to the journal."""

    world: World
    call: soap.Call
    raw: bytes
    headers: Headers
    client: tuple[str, int]
    detail: dict[str, Any] | None = None
    _session: AdminSession | None = field(default=None, repr=False)

    @property
    def session(self) -> AdminSession:
        """The client's own session, for calls on its behalf."""
        if self._session is None:
            wanted = [(n, v) for n, v in self.headers.items if n.lower() in ("cookie", "user-agent", "soapaction")]
            headers = Headers([("Content-Type", "text/xml; charset=utf-8"), *wanted])
            self._session = self.world.admin.acting_as(headers)
        return self._session

    async def require_login(self) -> None:
        """Raises SoapFault(NotAuthenticated) unless the client's cookie is that of a live session."""
        try:
            found = await self.session.properties(self.world.admin.content.sessionManager, "currentSession")
        except vmodl.MethodFault as exc:
            found = {}
            if not isinstance(exc, vim.fault.NotAuthenticated):
                raise SoapFault(exc) from exc
        if "currentSession" not in found:
            value = vim.fault.NotAuthenticated(
                object=self.world.admin.object(self.call.this_type, self.call.this_id), privilegeId="System.View"
            )
            raise SoapFault(value, "The session is not authenticated.")

    async def require_power(self, vm: Any, wanted: str) -> None:
        """Raises SoapFault(InvalidPowerState) unless the VM is `poweredOn` or `poweredOff`, as wanted."""
        try:
            found = await self.world.admin.properties(vm, "runtime.powerState")
        except vmodl.fault.ManagedObjectNotFound as exc:
            raise not_found(vm) from exc
        if (state := found.get("runtime.powerState")) != wanted:
            value = vim.fault.InvalidPowerState(existingState=state, requestedState=wanted)
            raise SoapFault(value, "The attempted operation cannot be performed in the current state.")

    async def forward(self) -> Reply:
        """Passes the call's own bytes to vcsim and its reply back, sanitised. Raises UpstreamGone, TimeoutError."""
        deadline = POLL_DEADLINE if self.call.method in _POLLS else FORWARD_DEADLINE
        headers = self.headers.without(*_DROPPED)
        answer = await self.world.upstream.request("POST", "/sdk", headers, self.raw, deadline)
        clean = self.world.sanitiser.fetched if self.call.method == "Fetch" else self.world.sanitiser.clean
        return Reply(answer.status, answer.headers, clean(answer.body, self.client[0], self.call.this_id))


Handler = Callable[[Context], Awaitable[Reply]]
