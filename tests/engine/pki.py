# SPDX-License-Identifier: MIT
"""A certificate authority for tests: one PEM file (certificate and key) a machine, as the engine wants them."""

from __future__ import annotations

from pathlib import Path

import trustme

from engine.rpc.identity import Identity


class Pki:
    """Issues identities in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)

    def identity(self, name: str, *, keylog: Path | None = None) -> Identity:
        """The identity of `name`; made once."""
        path = self.folder / f"{name}.pem"
        if not path.exists():
            leaf = self.authority.issue_cert(name, common_name=name)
            path.write_bytes(leaf.private_key_pem.bytes() + b"".join(p.bytes() for p in leaf.cert_chain_pems))
        return Identity(path, self.ca, keylog)
