# SPDX-License-Identifier: MIT
"""Bringing the world of a topology up, in order: namespaces and links, firewall, then the daemons of every host."""

from __future__ import annotations

import asyncio
import time

import yaml

from lab import pki
from lab.realise import netns
from lab.realise.supervisor import Supervisor


async def start_world(supervisor: Supervisor) -> None:
    """Builds everything; raises a VadplabError when something can not be built (the caller then takes it all down)."""
    begun = time.monotonic()
    topology, lab = supervisor.topology, supervisor.lab
    lab.inventory_file.write_text(yaml.safe_dump(topology.inventory().model_dump(mode="json"), sort_keys=False))
    pki.ensure(lab.pki, topology.addresses())
    await asyncio.to_thread(netns.build, topology, supervisor.namespaces)
    supervisor.report("namespaces and links", hosts=len(topology.hosts), ms=round((time.monotonic() - begun) * 1000))
