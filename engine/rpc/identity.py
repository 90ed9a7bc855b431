# SPDX-License-Identifier: MIT
"""Identity of a machine: certificate and key in one PEM file, the CA that signed its peers, and the TLS key log.

Both sides present a certificate of the same CA. A peer's name is its certificate's first DNS name, else its common name;
the client compares it with the machine it meant to reach.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from engine.errors import MissingError, TlsFailed


class WrongPeer(TlsFailed):
    """The peer's certificate is valid but belongs to another machine."""

    code = "tls.wrong-peer"
    symptom = "certificate of another machine"
    advice = "Check the address of the machine and that nothing answers in its place."


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this machine is towards other machines of the engine."""

    certificate: Path
    ca: Path
    keylog: Path | None = None

    @property
    def name(self) -> str:
        """This machine's name, from its own certificate."""
        try:
            pem = self.certificate.read_bytes()
            cert = x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERTIFICATE-----") :])
        except (OSError, ValueError) as exc:
            raise MissingError(f"certificate {self.certificate} cannot be read: {type(exc).__name__}") from exc
        try:
            names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            if dns := names.get_values_for_type(x509.DNSName):
                return dns[0]
        except x509.ExtensionNotFound:
            pass
        common = cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(common[0].value) if common else ""

    def client_context(self) -> ssl.SSLContext:
        """Mutual TLS 1.3, this side connects. The name is compared by the caller with `check_peer`."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def server_context(self) -> ssl.SSLContext:
        """Mutual TLS 1.3, this side listens; a client without a certificate of the CA is refused."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_cert_chain(self.certificate)
            context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as exc:
            raise MissingError(f"identity {self.certificate} or {self.ca} cannot be used: {exc}") from exc
        if self.keylog is not None:
            context.keylog_filename = str(self.keylog)
        return context


def peer_names(certificate: Mapping[str, Any] | None) -> list[str]:
    """The names in `ssl`'s certificate dict: DNS names, then the common name."""
    if not certificate:
        return []
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    names += [value for rdn in certificate.get("subject", ()) for key, value in rdn if key == "commonName"]
    return names


def check_peer(certificate: Mapping[str, Any] | None, expect: str, **where: Any) -> str:
    """Raises WrongPeer unless `expect` is one of the certificate's names. `where`: step, host, target, port of the error."""
    names = peer_names(certificate)
    if expect not in names:
        shown = ", ".join(names) or "nobody"
        raise WrongPeer(f"{where.get('host')} to {expect}: the certificate is of {shown}", **where)
    return expect
