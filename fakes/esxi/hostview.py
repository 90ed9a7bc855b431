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
    """The host view cannot be served. `optional`: no vcsim can be had, and the user did not name one that must serve."""

    def __init__(self, text: str, *, optional: bool = False) -> None:
        super().__init__(text)
        self.optional = optional


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
    found = await asyncio.to_thread(_vcsim, vcsim)
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


def _vcsim(spec: str | None) -> source.VcsimSource:
    """A vcsim that this process can start itself. A container is vCenter's: a host then takes one from PATH or the cache."""
    if spec is not None and not spec.startswith("docker"):
        try:
            found = source.locate(spec, source.default_cache())
        except source.VcsimMissing as exc:
            raise HostViewFailed(str(exc)) from exc
        return found
    cache = source.default_cache()
    kinds = ["path"] if spec is not None and not source.built_path(cache).is_file() else ["path", "built"]
    reason = ""
    for kind in kinds:
        try:
            return source.locate(kind, cache)
        except source.VcsimMissing as exc:
            reason = str(exc)
    raise HostViewFailed(reason, optional=True)
