# SPDX-License-Identifier: MIT
"""Guest processing of one VM (steps 9-14 and 16): freeze before the snapshot, thaw right after it.

Nothing here fails the VM's backup: a closed path, a missing account or a failing script is a warning, the scripts are reported
as not run, and the restore point is crash-consistent. There is never a guest-operation call (flow reference, step 13).
"""

from __future__ import annotations

import asyncio
from typing import Any

from engine.errors import VadplabError
from engine.guest.channel import GuestChannel, Scripts
from engine.guest.errors import GuestAddressUnknown, GuestCredentialsMissing, GuestNotSupported
from engine.manager.peers import Peers
from engine.manager.tasks import VmRun
from engine.report import Reporter
from engine.vsphere import VmInfo

MARGIN = 2.0
"""Seconds that the guest's watchdog may be late."""


class GuestRun:
    """The guest of one VM during its backup. `needs_thaw` from the moment the pre-freeze script may have run."""

    def __init__(
        self,
        vm: VmRun,
        info: VmInfo,
        settings: dict[str, Any],
        account: dict[str, Any] | None,
        scripts: Scripts | None,
    ) -> None:
        self.needs_thaw = False
        self.thaws_itself_at: float | None = None
        self.channel: GuestChannel | None = None
        self._vm = vm
        self._info = info
        self._enabled = bool(settings.get("enabled")) and scripts is not None
        self._account = account
        self._scripts = scripts

    @property
    def wanted(self) -> bool:
        """Whether there is a running guest to prepare."""
        return self._enabled and self._info.powered_on

    def address(self) -> str:
        """Step 12. Raises GuestNotSupported, GuestAddressUnknown, GuestCredentialsMissing."""
        guest, name = self._info.guest, self._vm.name
        if guest.family == "windowsGuest":
            raise GuestNotSupported(
                f"{name}: Windows guests are not processed over the network", step="12", target=name
            )
        if not guest.tools_running or not guest.address:
            raise GuestAddressUnknown(f"{name}: VMware Tools report no address", step="12", target=name)
        if self._account is None:
            raise GuestCredentialsMissing(f"{name}: no credentials for this guest", step="12", target=name)
        return guest.address

    async def connect(self, peers: Peers, address: str) -> None:
        """Step 13, first half: connect and upload both scripts."""
        assert self._account is not None and self._scripts is not None
        self.channel = peers.guest(self._vm.name, address, self._account, self._scripts)
        await self.channel.prepare()
        if self._account.get("host_key") is None and self.channel.host_key is not None:
            await peers.service.learned({"vm": self._vm.name, "host_key": self.channel.host_key})

    async def freeze(self) -> None:
        """Step 13, second half: the pre-freeze script."""
        assert self.channel is not None and self._scripts is not None
        self.needs_thaw = True
        self.thaws_itself_at = asyncio.get_running_loop().time() + self._scripts.thaw_after + MARGIN
        result = await self.channel.freeze()
        self._vm.scripts = "ran"
        self._vm.consistency = "crash" if result.froze_nothing else "file-system"

    async def thaw(self) -> None:
        """Step 16."""
        assert self.channel is not None
        await self.channel.thaw()
        self.needs_thaw = False
        self.thaws_itself_at = None

    async def thawed(self) -> None:
        """Before any read: when the thaw failed, waits until the guest's own watchdog has thawed it."""
        if self.thaws_itself_at is not None:
            await asyncio.sleep(max(0.0, self.thaws_itself_at - asyncio.get_running_loop().time()))

    async def close(self) -> None:
        """Ends the channel; never raises."""
        if self.channel is not None:
            await self.channel.close()

    def warn(self, error: VadplabError, reporter: Reporter) -> None:
        """The scripts did not run as they should: the point is crash-consistent."""
        self._vm.scripts = "did not run"
        self._vm.consistency = "crash"
        self._vm.warnings.append(error)
        reporter.warning(error, vm=self._vm.name)
