# SPDX-License-Identifier: MIT
"""The sequence of a VM backup, steps 1..22 (`docs/sequence.md`, after the flow reference section 2.2).

A step's id is a string because some steps have variants (`5a`, `20c`). `engine.manager` performs the steps in this
order; every event and every error of the engine carries one of these ids. This table is also the one place that says who
performs a step and which steps read disk data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Performer = Literal["service", "manager", "mover", "console"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its id, the phase it belongs to, what happens, and whether it is local (no connection of its own).

    by: the process that performs it and writes its events. reads: whether it reads the disk's data.
    """

    id: str
    phase: str
    title: str
    local: bool = False
    by: Performer = "manager"
    reads: bool = False


STEPS: tuple[Step, ...] = (
    Step("1", "initialisation", "Job is started from the console", by="service"),
    Step("2", "initialisation", "Backup Manager process starts", local=True),
    Step("3", "initialisation", "Manager reads the job settings and makes one task per VM disk", local=True),
    Step("4", "initialisation", "Manager asks the Backup Service for a proxy and a repository", local=True),
    Step("5a", "initialisation", "Manager connects to the Transport Service on the repository: Data Mover starts"),
    Step("5b", "initialisation", "Manager connects to the Transport Service on the proxy: Data Mover starts"),
    Step("6", "initialisation", "Manager connects to the Data Movers and sets throttling and other rules"),
    Step("7", "initialisation", "Data Movers connect to each other"),
    Step("8", "initialisation", "Manager gathers VM and host metadata from vCenter"),
    Step("9", "guest processing", "Windows guest address is taken from VMware Tools", local=True),
    Step("10", "guest processing", "Connect to the Windows guest over the network"),
    Step("11", "guest processing", "Windows guest over VIX (guest operations)"),
    Step("12", "guest processing", "Linux guest address is taken from VMware Tools", local=True),
    Step("13", "guest processing", "SSH to the Linux guest: scripts injected, pre-freeze runs"),
    Step("14", "guest processing", "VMware Tools quiescence with scripts kept in the guest", local=True),
    Step("15", "snapshot", "Snapshot is requested"),
    Step("16", "release", "Guest I/O resumes: post-thaw script runs"),
    Step("17", "transport", "Transport mode is chosen", local=True),
    Step("18", "transport", "Proxy logs in to vCenter and asks for a one-time ticket", by="mover"),
    Step("19", "transport", "Proxy connects to the ESXi host and reads the configuration files", by="mover"),
    Step("20a", "transport", "Direct SAN: data is read straight from the SAN", by="mover", reads=True),
    Step(
        "20b", "transport", "HotAdd: the snapshot's disks are attached to the proxy VM and read", by="mover", reads=True
    ),
    Step("20c", "transport", "Network: the same data channel carries the disk data", by="mover", reads=True),
    Step("21", "transport", "Blocks go to the repository on the connection of step 7", by="mover"),
    Step("22", "commit", "Snapshot is committed"),
)

RESTORE_STEPS: tuple[Step, ...] = (
    Step("r1", "restore", "Restore is started from the console", by="service"),
    Step(
        "r2",
        "restore",
        "Backup Service connects to the Transport Service on the repository: Data Mover starts",
        by="service",
    ),
    Step("r3", "restore", "Console connects to the Data Mover on the repository and receives the disk", by="console"),
    Step(
        "r4",
        "restore",
        "Backup Service connects to the Transport Service on the proxy: Data Mover starts",
        by="service",
    ),
    Step("r5", "restore", "Backup Service makes the new VM in vCenter", by="service"),
    Step("r6", "restore", "Data Movers connect to each other", by="service"),
    Step("r7", "restore", "Transport mode is chosen", local=True, by="service"),
    Step("r8", "restore", "Proxy logs in to vCenter, asks for a one-time ticket or attaches the new disk", by="mover"),
    Step("r9", "restore", "Proxy connects to the ESXi host", by="mover"),
    Step("r10b", "restore", "HotAdd: blocks are written to the new disk, attached to the proxy VM", by="mover"),
    Step("r10c", "restore", "Network: blocks are written to the new disk through the ESXi host", by="mover"),
    Step("r11", "restore", "The VM is whole and released, or the half-made VM is destroyed", by="service"),
    Step("r12", "restore", "Console connects to the disk server of an instant recovery", by="console"),
)

RESCAN_STEPS: tuple[Step, ...] = (
    Step("i1", "rescan", "Rescan is started from the console", by="service"),
    Step("i2", "rescan", "Backup Service reads the inventory from vCenter", by="service"),
    Step("i3", "rescan", "Backup Service asks each Transport Service for its version and limits", by="service"),
)

BY_ID: dict[str, Step] = {s.id: s for s in (*STEPS, *RESTORE_STEPS, *RESCAN_STEPS)}
BY_MOVER: frozenset[str] = frozenset(s.id for s in BY_ID.values() if s.by == "mover")
READING: frozenset[str] = frozenset(s.id for s in STEPS if s.reads)
