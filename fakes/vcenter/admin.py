# SPDX-License-Identifier: MIT
"""The gateway's own login at vcsim: any vim25 method by name, with pyVmomi values, from asyncio.

pyVmomi serialises the call and reads the reply; the bytes travel over the same `Upstream` as clients' calls do. Faults
are raised as pyVmomi's exceptions.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from pyVmomi import SoapAdapter, VmomiSupport, vim, vmodl

from fakes.vcenter import soap
from fakes.vcenter.http import Headers
from fakes.vcenter.upstream import Upstream

_COOKIE = re.compile(r"\s*(vmware_soap_session=[^;]+)")
POLL = 0.005  # seconds between looks at a task; vcsim's tasks take milliseconds
TASK_DEADLINE = 60.0


class NfcService(VmomiSupport.ManagedObject):  # type: ignore[misc]
    """The type that pyVmomi does not ship, as far as a reference in a fault needs it."""

    _wsdlName = "NfcService"


def reference(kind: str, moid: str) -> Any:
    """A managed object of that wsdl type; its attributes can not be read through it, only `call` uses it."""
    if kind == "NfcService":
        return NfcService(moid)
    try:
        return VmomiSupport.GetWsdlType(soap.VIM25, kind)(moid, None)
    except (KeyError, TypeError, AttributeError):
        return VmomiSupport.ManagedObject(moid)


def _said(fault: Any) -> Any:
    """vcsim calls a fault without a text by its Go type (vcsim reference section 8.2 #5)."""
    if (fault.msg or "").startswith("*types."):
        fault.msg = soap.words(type(fault).__name__.rpartition(".")[2])
    return fault


class _Stub(SoapAdapter.SoapStubAdapterBase):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(soap.VERSION)
        self.requestContext = None


class AdminSession:
    """One vSphere session (that of `headers`' cookie; `login` makes one)."""

    def __init__(self, upstream: Upstream, headers: Headers | None = None) -> None:
        self.upstream = upstream
        self.headers = headers or Headers([("Content-Type", "text/xml; charset=utf-8")])
        self._stub = _Stub()
        self.content: Any = None
        self.key = ""

    def object(self, kind: str, moid: str) -> Any:
        """`reference`, for callers that hold a session."""
        return reference(kind, moid)

    async def raw(self, body: bytes, timeout: float = 60.0) -> tuple[int, bytes]:
        """Sends a SOAP message; returns status and body. Raises UpstreamGone, TimeoutError."""
        answer = await self.upstream.request("POST", "/sdk", self.headers, body, timeout)
        cookie = answer.headers.get("set-cookie")
        if cookie and (match := _COOKIE.match(cookie)):
            self.headers = Headers([*self.headers.without("cookie").items, ("Cookie", match[1])])
        return answer.status, answer.body

    async def call(self, target: Any, method: str, **values: Any) -> Any:
        """Calls `method` (wsdl name) on a managed object; returns its result.

        Raises:
            vmodl.MethodFault: vcsim's fault. UpstreamGone, TimeoutError: no answer.
        """
        info = soap.method_info(method)
        unknown = set(values) - {p.name for p in info.params}
        if unknown:
            raise TypeError(f"{method} has no parameter {', '.join(sorted(unknown))}")
        message = self._stub.SerializeRequest(target, info, [values.get(p.name) for p in info.params])
        # pyVmomi names references inside untyped values `ManagedObject`, which vcsim decodes to nil (reference 8.3)
        message = message.replace(b'xsi:type="ManagedObject"', b'xsi:type="ManagedObjectReference"')
        status, body = await self.raw(message)
        result = SoapAdapter.SoapResponseDeserializer(None).Deserialize(body, info.result)
        if status != 200:
            raise _said(result) if isinstance(result, Exception) else vmodl.fault.SystemError(reason=f"HTTP {status}")
        return result

    async def connect(self) -> Any:
        """Reads and keeps the ServiceContent (`content`), which a vCenter and a host name differently."""
        self.content = await self.call(vim.ServiceInstance("ServiceInstance", None), "RetrieveServiceContent")
        return self.content

    async def login(self, username: str, password: str) -> None:
        """Logs in; later calls carry the session's cookie, `key` is the session's. Raises vmodl.MethodFault."""
        await self.connect()
        session = await self.call(self.content.sessionManager, "Login", userName=username, password=password)
        self.key = str(session.key)

    def acting_as(self, headers: Headers) -> AdminSession:
        """Another session at the same service: the one that a client's headers carry."""
        other = AdminSession(self.upstream, headers)
        other.content = self.content
        return other

    async def properties(self, target: Any, *paths: str) -> dict[str, Any]:
        """Properties of one object; unset ones are missing from the result.

        Raises:
            vmodl.fault.ManagedObjectNotFound: there is no such object (or none that this session may see).
        """
        spec = vmodl.query.PropertyCollector.FilterSpec(
            objectSet=[vmodl.query.PropertyCollector.ObjectSpec(obj=target, skip=False)],
            propSet=[vmodl.query.PropertyCollector.PropertySpec(type=type(target), pathSet=list(paths))],
        )
        collector = self.content.propertyCollector
        options = vmodl.query.PropertyCollector.RetrieveOptions()
        found = await self.call(collector, "RetrievePropertiesEx", specSet=[spec], options=options)
        if found is None or not found.objects:
            raise vmodl.fault.ManagedObjectNotFound(obj=target)
        if any(isinstance(m.fault, vim.fault.NotAuthenticated) for m in found.objects[0].missingSet or []):
            raise vim.fault.NotAuthenticated(object=target, privilegeId="System.Read")
        return {p.name: p.val for p in found.objects[0].propSet or []}

    async def finished(self, task: Any, deadline: float = TASK_DEADLINE) -> Any:
        """Waits for a task; returns its result.

        Raises:
            vmodl.MethodFault: the task's error. TimeoutError: not ended within `deadline` seconds.
        """
        async with asyncio.timeout(deadline):
            while True:
                # not the whole info: some of vcsim's name an entity that is none (vcsim reference section 8.2 #4)
                values = await self.properties(task, "info.state", "info.result", "info.error")
                if values.get("info.state") == "success":
                    return values.get("info.result")
                if values.get("info.state") == "error":
                    raise _said(values["info.error"])
                await asyncio.sleep(POLL)
