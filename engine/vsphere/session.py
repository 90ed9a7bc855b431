# SPDX-License-Identifier: MIT
"""A session: pyVmomi's SOAP stub over sockets that the dialer opened; calls, tasks and properties.

Blocking. One call at a time goes over one kept connection, which is re-made when the server ended it; every TCP connection is
an event of the step that needed it, and a later step that uses the kept connection writes a `use` event. The certificate is
compared with a thumbprint (SHA-1 or SHA-256).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ssl
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from pyVmomi import SoapAdapter, VmomiSupport, vim, vmodl

from engine.dialer import Connection, Dialer
from engine.errors import AuthenticationFailed, ConnectTimedOut, ThumbprintMismatch, VadplabError, from_oserror
from engine.rpc.tuning import tune
from engine.vsphere.faults import ObjectNotFound, TaskTimedOut, VSphereFault

CALL_TIMEOUT = 20.0
TASK_POLL = (0.02, 0.5)
"""Seconds between looks at a task: the first pause, and the longest; each is twice the one before."""
FALLBACK_VERSION = "vim.version.v8_0_3_0"

T = TypeVar("T")


class _DialedConnection(http.client.HTTPSConnection):
    """An HTTPS connection whose socket comes from the dialer; the peer's certificate is pinned by thumbprint."""

    def __init__(self, owner: Session, timeout: float) -> None:
        super().__init__(owner.address, owner.port, timeout=timeout)
        self._owner = owner

    def connect(self) -> None:
        self.sock = self._owner._open_socket(float(self.timeout or CALL_TIMEOUT))


class Session:
    """A logged-in session. Make it with `login`; end it with `logout`."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        name: str,
        address: str,
        port: int,
        thumbprint: str | None,
        keylog: Path | None,
        timeout: float,
    ) -> None:
        self.dialer = dialer
        self.name = name
        self.address = address
        self.port = port
        self.thumbprint = thumbprint
        self.seen_thumbprint: str | None = None
        self._keylog = keylog
        self._timeout = timeout
        self._lock = threading.RLock()
        self._step: str | None = None
        self._connection: Connection | None = None
        self._opened_by: str | None = None
        self._used_by: set[str] = set()
        self._account: tuple[str, str] | None = None
        self.stub = SoapAdapter.SoapStubAdapter(
            host=address, port=port, version=FALLBACK_VERSION, poolSize=1, acceptCompressedResponses=False
        )
        self.stub.scheme = lambda **_: _DialedConnection(self, timeout)
        self.content: Any = None

    @classmethod
    def login(
        cls,
        dialer: Dialer,
        *,
        name: str,
        address: str,
        port: int = 443,
        thumbprint: str | None,
        username: str,
        password: str,
        step: str,
        keylog: Path | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> Self:
        """Connects, verifies the certificate, agrees on a version and logs in.

        Args:
            name: what events and errors call the server. thumbprint: SHA-1 or SHA-256 in hex, colons allowed; None: any
            certificate, its SHA-256 is then in `seen_thumbprint`. timeout: seconds for each call.

        Raises:
            ConnectError: one subclass per symptom. ThumbprintMismatch. AuthenticationFailed. VSphereFault.
        """
        self = cls(dialer, name=name, address=address, port=port, thumbprint=thumbprint, keylog=keylog, timeout=timeout)
        self._account = (username, password)
        try:
            with self.at(step):
                self._guard(self._negotiate)
                self._guard(self._authenticate)
        except BaseException:
            self.close()
            raise
        return self

    @contextlib.contextmanager
    def at(self, step: str) -> Iterator[Self]:
        """Calls within belong to `step`: new connections are its attempts, a kept one is noted as used by it."""
        with self._lock:
            before, self._step = self._step, step
            try:
                if self._connection is not None and self._opened_by != step and step not in self._used_by:
                    self.dialer.events.use(self._connection.attempt, step=step)
                    self._used_by.add(step)
                yield self
            finally:
                self._step = before

    def call(self, function: Callable[[], T], *, step: str, repeatable: bool = True) -> T:
        """Runs `function` (pyVmomi calls) at `step`, with faults and socket errors as errors of the catalogue.

        `repeatable`: may run again after a kept connection or session turned out to be gone.
        """
        with self.at(step):
            try:
                return self._guard(function)
            except (VSphereFault, AuthenticationFailed) as exc:
                if not repeatable or getattr(exc, "fault", "") != "NotAuthenticated":
                    raise
                self._guard(self._authenticate)
                return self._guard(function)
            except VadplabError as exc:
                if not repeatable or exc.code != "connect.cut":
                    raise
                return self._guard(function)

    def logout(self) -> None:
        """Ends the session and the connection; never raises."""
        with contextlib.suppress(Exception), self._lock:
            if self.content is not None and self._connection is not None:
                self.content.sessionManager.Logout()
        self.close()

    def close(self) -> None:
        """Ends the connection without a logout."""
        with contextlib.suppress(Exception):
            self.stub.DropConnections()
        self._connection = None

    def wait(self, task: Any, *, step: str, timeout: float) -> Any:
        """Waits for a vSphere task and gives its result. Raises VSphereFault (the task's error), TaskTimedOut."""
        end = time.monotonic() + timeout
        pause, longest = TASK_POLL
        while True:
            info = self.call(lambda: task.info, step=step)
            if info.state == vim.TaskInfo.State.success:
                return info.result
            if info.state == vim.TaskInfo.State.error:
                raise self._fault(info.error, step)
            if time.monotonic() > end:
                raise TaskTimedOut(f"{self.name}: {info.descriptionId or 'task'} did not end", **self.where(step))
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def where(self, step: str | None = None) -> dict[str, Any]:
        """The place of an error: step, host, target, port."""
        return {
            "step": step or self._step,
            "host": self.dialer.events.host,
            "target": self.name,
            "port": self.port,
        }

    # Properties

    def properties(self, kind: Any, paths: list[str]) -> list[tuple[Any, dict[str, Any]]]:
        view = self.content.viewManager.CreateContainerView(self.content.rootFolder, [kind], True)
        try:
            traverse = vmodl.query.PropertyCollector.TraversalSpec(
                name="view", path="view", skip=False, type=vim.view.ContainerView
            )
            start = vmodl.query.PropertyCollector.ObjectSpec(obj=view, skip=True, selectSet=[traverse])
            return self._retrieve(start, kind, paths)
        finally:
            with contextlib.suppress(Exception):
                view.DestroyView()

    def of(self, obj: Any, paths: list[str]) -> dict[str, Any]:
        start = vmodl.query.PropertyCollector.ObjectSpec(obj=obj, skip=False)
        found = self._retrieve(start, type(obj), paths)
        return found[0][1] if found else {}

    def _retrieve(self, start: Any, kind: Any, paths: list[str]) -> list[tuple[Any, dict[str, Any]]]:
        collector = self.content.propertyCollector
        spec = vmodl.query.PropertyCollector.FilterSpec(
            objectSet=[start],
            propSet=[vmodl.query.PropertyCollector.PropertySpec(type=kind, pathSet=paths, all=False)],
        )
        options = vmodl.query.PropertyCollector.RetrieveOptions()
        result = collector.RetrievePropertiesEx(specSet=[spec], options=options)
        found: list[tuple[Any, dict[str, Any]]] = []
        while result is not None:
            found += [(o.obj, {p.name: p.val for p in o.propSet or []}) for o in result.objects or []]
            token = result.token
            result = collector.ContinueRetrievePropertiesEx(token=token) if token else None
        return found

    # Connection

    def _negotiate(self) -> None:
        connection = self.stub.GetConnection()
        try:
            connection.request("GET", "/sdk/vimServiceVersions.xml")
            response = connection.getresponse()
            text = response.read(1 << 20)
        except BaseException:
            connection.close()
            raise
        self.stub.ReturnConnection(connection)
        if response.status == 200:
            with contextlib.suppress(ElementTree.ParseError):
                self.stub.version = _newest_common(text)
                self.stub.versionId = f'"urn:{VmomiSupport.GetVersionNamespace(self.stub.version)}"'

    def _authenticate(self) -> None:
        assert self._account is not None
        username, password = self._account
        instance = vim.ServiceInstance("ServiceInstance", self.stub)
        self.content = instance.RetrieveContent()
        self.content.sessionManager.Login(userName=username, password=password)

    def _open_socket(self, timeout: float) -> ssl.SSLSocket:
        connection = self.dialer.connect(self.address, self.port, step=self._step, name=self.name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the certificate is pinned by its thumbprint instead
        if self._keylog is not None:
            context.keylog_filename = str(self._keylog)
        tune(connection.sock)
        connection.sock.settimeout(timeout)
        try:
            sock = context.wrap_socket(connection.sock, server_hostname=self.address)
        except (OSError, ssl.SSLError) as exc:
            connection.sock.close()
            raise from_oserror(exc, **self.where()) from exc
        certificate = sock.getpeercert(binary_form=True) or b""
        self.seen_thumbprint = hashlib.sha256(certificate).hexdigest()
        if self.thumbprint is not None and not thumbprint_matches(self.thumbprint, certificate):
            sock.close()
            raise ThumbprintMismatch(
                f"{self.dialer.events.host} to {self.name}:{self.port}: certificate mismatch", **self.where()
            )
        self._connection, self._opened_by, self._used_by = connection, self._step, set()
        return sock

    def _guard(self, function: Callable[[], T]) -> T:
        try:
            with self._lock:
                return function()
        except VadplabError:
            raise
        except vim.fault.InvalidLogin as exc:
            raise AuthenticationFailed(
                f"{self.dialer.events.host} to {self.name}:{self.port}: credentials refused", **self.where()
            ) from exc
        except vmodl.MethodFault as exc:
            raise self._fault(exc, self._step) from exc
        except (http.client.HTTPException, ElementTree.ParseError) as exc:
            if isinstance(exc, ConnectionError):  # RemoteDisconnected
                raise from_oserror(exc, **self.where()) from exc
            raise VSphereFault(f"{self.name}: answer cannot be read ({type(exc).__name__})", **self.where()) from exc
        except TimeoutError as exc:
            raise ConnectTimedOut(
                f"{self.dialer.events.host} to {self.name}:{self.port}: timed out", **self.where()
            ) from exc
        except OSError as exc:
            raise from_oserror(exc, **self.where()) from exc

    def _fault(self, fault: Any, step: str | None) -> VSphereFault:
        name = type(fault).__name__.split(".")[-1]
        kind = ObjectNotFound if isinstance(fault, vmodl.fault.ManagedObjectNotFound) else VSphereFault
        text = str(getattr(fault, "msg", "") or "")
        error = kind(f"{self.name}: {name}{f' ({text})' if text else ''}", **self.where(step))
        error.fault = name
        return error


def thumbprint_matches(thumbprint: str, certificate: bytes) -> bool:
    """Whether `thumbprint` (SHA-1 or SHA-256, hex, colons allowed) is that of a DER certificate."""
    wanted = thumbprint.replace(":", "").replace(" ", "").lower()
    return bool(wanted) and wanted in (hashlib.sha1(certificate).hexdigest(), hashlib.sha256(certificate).hexdigest())


def _newest_common(document: bytes) -> str:
    """The newest version of `urn:vim25` that the server offers and pyVmomi knows."""
    for namespace in ElementTree.fromstring(document).iter("namespace"):
        if namespace.findtext("name") == "urn:vim25":
            offered = [namespace.findtext("version") or ""]
            offered += [v.text or "" for v in namespace.iterfind("priorVersions/version")]
            for version in offered:
                if known := VmomiSupport.versionMap.get(f"vim25/{version}"):
                    return str(known)
    return FALLBACK_VERSION
