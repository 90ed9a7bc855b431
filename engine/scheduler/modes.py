# SPDX-License-Identifier: MIT
"""Which transport modes a task may use, in order of preference (flow reference 2.4: Direct SAN > HotAdd > Network)."""

from __future__ import annotations

from collections.abc import Collection

SAN, HOTADD, NBDSSL, NBD, AUTO = "san", "hotadd", "nbdssl", "nbd", "auto"
NETWORK = (NBDSSL, NBD)
MODES = (SAN, HOTADD, NBDSSL, NBD, AUTO)
"""What a job may ask for."""


def preference(mode: str, *, failover: bool = True) -> tuple[str, ...]:
    """The modes that a job's setting allows, best first. Failover of SAN and HotAdd goes to Network mode.

    `auto` is a choice among modes, so it keeps them all; without failover only the best one that a proxy has is tried.
    """
    if mode == AUTO:
        return (SAN, HOTADD, *NETWORK)
    if mode in (SAN, HOTADD) and failover:
        return (mode, *NETWORK)
    return (mode,)


def usable(mode: str, able: Collection[str], *, failover: bool = True) -> tuple[str, ...]:
    """The modes to try, in order, on a proxy that can use `able`; of the two Network modes only the first is tried.

    Network mode needs nothing of a proxy: with failover it is the last resort also where `able` does not name it.
    """
    found = [m for m in preference(mode, failover=failover) if m in able]
    if found and failover and mode not in NETWORK and not any(m in NETWORK for m in found):
        found.append(NBDSSL)
    network = [m for m in found if m in NETWORK]
    found = [m for m in found if m not in network[1:]]
    return tuple(found if failover else found[:1])
