# SPDX-License-Identifier: MIT
"""The host's own 443: the same gateway as vCenter's, over a vcsim of its own that shows this one host.

Its SOAP journal lies beside the host's (`soap.jsonl`). The user is root, with the inventory's password.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from pyVmomi import vmodl

from fakes.core.fabric import FabricError
from fakes.core.inventory import Inventory
from fakes.vcenter import source
from fakes.vcenter.gateway import Gateway, Settings
from fakes.vcenter.simulator import SimulatorFailed

USER = "root"


class HostViewFailed(Exception):
    """The host view cannot be served. `missing` when vcsim cannot be had here."""

    def __init__(self, text: str, *, missing: bool = False) -> None:
        super().__init__(text)
        self.missing = missing


@dataclass
class HostView:
    """A running host view; `url` of its SDK."""

    gateway: Gateway
    url: str

    async def stop(self) -> None:
        """Ends it and its vcsim."""
        await self.gateway.stop()


async def start(
    *,
    name: str,
    address: str,
    port: int,
    certificate: Path,
    inventory: Inventory,
    fabric: Path,
    journal: Path | None,
    vcsim: str | None,
) -> HostView:
    """Starts the host view on `address`:`port`. Raises HostViewFailed."""
    try:
        found = await asyncio.to_thread(source.locate, vcsim, source.default_cache())
    except source.VcsimMissing as exc:
        raise HostViewFailed(str(exc), missing=True) from exc
    if found.executable is None:
        raise HostViewFailed(f"{found.describe()} cannot be started by a host; name a binary (--vcsim)", missing=True)
    settings = Settings(
        source=found,
        certificate=certificate,
        inventory=inventory,
        view="host",
        host=name,
        fabric=fabric,
        journal=journal.with_name("soap.jsonl") if journal is not None else None,
        state=fabric / f"state-{name}",
        username=USER,
        password=inventory.password,
    )
    gateway = Gateway(settings)
    try:
        where, bound = await gateway.start(address, port)
    except OSError as exc:
        raise HostViewFailed(f"{address}:{port}: {exc.strerror or exc}") from exc
    except (SimulatorFailed, FabricError, vmodl.MethodFault) as exc:
        raise HostViewFailed(f"the inventory of the host view cannot be built: {exc}") from exc
    return HostView(gateway, f"https://{where}:{bound}/sdk")
