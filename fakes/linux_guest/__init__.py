# SPDX-License-Identifier: MIT
"""A Linux guest: a root of its own on its own virtual disk, OpenSSH on 22, a workload that keeps writing.

Nouns:

    disk        the live export of storage as a block device: nbdfuse, loop, ext4
    root        what the guest sees: /usr of the host read-only, everything else on its disk or in memory
    init        process 1 of the guest: sshd, the workload, the Tools daemon
    ledger      the workload: double entry and hash chain in SQLite, and its check
    substitute  the guest that an ordinary user can have (and `sshserver` in OpenSSH's place)
    life        the supervising process: until the guest is up, while it lives, how it ends
    machine     the side of the hypervisor: the guest's RPCI socket, freeze record, fabric socket
    guardian    a process outside that thaws the guest's file system when all of this was killed
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """`python -m fakes.linux_guest`: see `fakes.linux_guest.command`."""
    from fakes.linux_guest.command import main as command

    return command(argv)
