# SPDX-License-Identifier: MIT
"""The names of the transport modes, their order, and which of them a task may use (flow reference 2.4: Direct SAN > HotAdd > Network).

Imports nothing that reads a disk: the configuration, the scheduler and the Backup Manager use it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from engine.config import EngineConfig

NetworkMode = Literal["nbdssl", "nbd"]
Mode = Literal["san", "hotadd", "nbdssl", "nbd"]
JobMode = Literal["auto", "san", "hotadd", "nbdssl", "nbd"]
"""What a job may ask for."""

SAN: Final = "san"
HOTADD: Final = "hotadd"
NBDSSL: Final = "nbdssl"
NBD: Final = "nbd"
AUTO: Final = "auto"

NETWORK: tuple[NetworkMode, ...] = (NBDSSL, NBD)
MODES: tuple[Mode, ...] = (SAN, HOTADD, *NETWORK)
"""Best first; `auto` is this order."""
WRITING: tuple[Mode, ...] = (HOTADD, *NETWORK)
"""Those that a restore can use: Direct SAN reads only."""


def configured(config: EngineConfig) -> list[Mode]:
    """The modes that a machine is set up for, best first; Network mode needs nothing."""
    missing = {SAN} if config.san is None else set()
    missing |= {HOTADD} if config.proxy is None else set()
    return [mode for mode in MODES if mode not in missing]


def preference(mode: str, *, failover: bool = True) -> tuple[str, ...]:
    """The modes that a job's setting allows, best first. Failover of SAN and HotAdd goes to Network mode.

    `auto` is a choice among modes, so it keeps them all; without failover only the best one that a proxy has is tried.
    """
    if mode == AUTO:
        return MODES
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
