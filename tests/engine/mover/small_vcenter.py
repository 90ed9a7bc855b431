# SPDX-License-Identifier: MIT
"""A vCenter of four SOAP calls: log in, ask for an NFC ticket of a fake host, log out."""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
    'xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
    "<soapenv:Body>{}</soapenv:Body></soapenv:Envelope>"
)
CONTENT = (
    '<RetrieveServiceContentResponse xmlns="urn:vim25"><returnval><rootFolder type="Folder">group-d1</rootFolder>'
    '<propertyCollector type="PropertyCollector">pc</propertyCollector><about><name>v</name><fullName>v</fullName>'
    "<vendor>v</vendor><version>8.0.3</version><build>1</build><osType>linux</osType><productLineId>vpx</productLineId>"
    "<apiType>{api}</apiType><apiVersion>8.0.3.0</apiVersion></about>"
    '<sessionManager type="SessionManager">sm</sessionManager></returnval></RetrieveServiceContentResponse>'
)
SESSION = (
    '<LoginResponse xmlns="urn:vim25"><returnval><key>k</key><userName>u</userName><fullName>u</fullName>'
    "<loginTime>2026-01-01T00:00:00Z</loginTime><lastActiveTime>2026-01-01T00:00:00Z</lastActiveTime><locale>en</locale>"
    "<messageLocale>en</messageLocale></returnval></LoginResponse>"
)
FAULT = (
    "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>{text}</faultstring><detail>"
    '<{name}Fault xmlns="urn:vim25" xsi:type="{name}"></{name}Fault></detail></soapenv:Fault>'
)


@dataclass
class SmallVcenter:
    """Its address, what it was asked, and what it answers. `ticket`: fields of a HostServiceTicket, made at each call."""

    ticket: Callable[[], dict[str, object]]
    api: str = "VirtualCenter"
    refuse: str | None = None
    unknown: frozenset[str] = frozenset()
    port: int = 0
    calls: list[str] = field(default_factory=list)

    def answer(self, body: str) -> tuple[int, str]:
        """Status and SOAP body."""
        match = re.search(r"<soapenv:Body><(\w+) .*?<_this[^>]*>([^<]*)<", body, re.S)
        assert match is not None, body
        method, moref = match[1], match[2]
        self.calls.append(f"{moref}.{method}")
        if method == "RetrieveServiceContent":
            return 200, CONTENT.format(api=self.api)
        if method == "Login":
            return 200, SESSION
        if method == "Logout":
            return 200, '<LogoutResponse xmlns="urn:vim25"/>'
        if method == "NfcGetVmFiles":
            if moref in self.unknown:
                return 500, FAULT.format(text="gone", name="ManagedObjectNotFound")
            if self.refuse:
                return 500, FAULT.format(text="no", name=self.refuse)
            fields = "".join(f"<{name}>{value}</{name}>" for name, value in self.ticket().items())
            return 200, (
                f'<NfcGetVmFilesResponse xmlns="urn:vim25"><returnval>{fields}</returnval></NfcGetVmFilesResponse>'
            )
        return 500, FAULT.format(text=method, name="NotSupported")


@contextlib.contextmanager
def serve(vcenter: SmallVcenter, certificate: Path) -> Iterator[SmallVcenter]:
    """Serves it on loopback; `certificate`: PEM with key."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(404, "")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._reply(*vcenter.answer(body))

        def _reply(self, status: int, body: str) -> None:
            data = ENVELOPE.format(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/xml; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    vcenter.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield vcenter
    finally:
        server.shutdown()
        server.server_close()
