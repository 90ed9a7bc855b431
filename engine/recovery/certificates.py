# SPDX-License-Identifier: MIT
"""A machine's TLS identity in the form that NBD programs read: a folder with `ca-cert.pem`, `server-…` and `client-…` files.

nbdkit (`--tls-certificates`), libnbd (`tls-certificates=` in an `nbds:` URI) and QEMU (`tls-creds-x509`) share these names.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from engine.errors import MissingError
from engine.rpc.identity import Identity

_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n?", re.DOTALL)
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)


class IdentityUnusable(MissingError):
    """A machine's certificate file has no certificate or no key, or cannot be read."""

    code = "recovery.identity"
    advice = "Look at the machine's `identity` in its configuration file."


@contextlib.contextmanager
def folder(identity: Identity) -> Iterator[Path]:
    """A private folder with the files, while the context lasts. Raises IdentityUnusable."""
    path = Path(tempfile.mkdtemp(prefix="vadplab-tls-"))
    try:
        try:
            pem, authority = identity.certificate.read_bytes(), identity.ca.read_bytes()
        except OSError as exc:
            raise IdentityUnusable(f"{exc.filename}: {exc.strerror}") from exc
        certificates, key = _CERTIFICATE.findall(pem), _KEY.search(pem)
        if not certificates or key is None:
            raise IdentityUnusable(f"{identity.certificate} has no certificate, or no private key")
        _write(path / "ca-cert.pem", authority)
        for side in ("server", "client"):
            _write(path / f"{side}-cert.pem", b"".join(certificates))
            _write(path / f"{side}-key.pem", key[0])
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
