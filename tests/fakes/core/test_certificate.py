# SPDX-License-Identifier: MIT
"""Certificates that fakes make for themselves."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

from cryptography import x509

from fakes.core import certificate


def test_a_certificate_names_the_fake_and_can_be_loaded_and_trusted(tmp_path: Path) -> None:
    pem = tmp_path / "fake.pem"
    certificate.make(pem, ["esxi-1", "127.0.0.1", "esxi-1"])
    assert pem.stat().st_mode & 0o077 == 0
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pem)
    trust = ssl.create_default_context(cafile=str(pem))
    (der,) = trust.get_ca_certs(binary_form=True)
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["esxi-1"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    digits = hashlib.sha1(der).hexdigest().upper()
    assert certificate.thumbprint(pem, "sha1") == ":".join(digits[i : i + 2] for i in range(0, 40, 2))
