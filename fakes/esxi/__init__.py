# SPDX-License-Identifier: MIT
"""A fake ESXi host: authd and NFC on TCP 902, a client of storage on the fabric (`FIDELITY.md` says what is real here).

Nouns, in the order in which a connection meets them:

    channel     the bytes of one TCP connection: clear, TLS, or TLS that was left again
    authd       the text dialogue inside TLS: SESSION, BANNER, THUMBPRINT_SHA2, PROXY
    tickets     single-use permissions that vCenter stored with this host
    nfc         classic messages (264 bytes), then AIO frames: open, read, write, close
    datastores  what a ticket may open: disks (NBD of the storage service) and plain files
    journal     who connected, what was refused, what was opened
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """`vadplab fake esxi`: see `fakes.esxi.command`."""
    from fakes.esxi.command import main as command

    return command(argv)
