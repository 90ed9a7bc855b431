# SPDX-License-Identifier: MIT
"""Guest operations (VIX through the API): all of them end here, none reaches vcsim.

vcsim's StartProgramInGuest locks its manager for ever, and its file operations succeed without a guest (vcsim reference
section 12). No guest of this lab offers guest operations yet, so each call is answered as vSphere answers for a VM whose
Tools do not offer them. Every call is in the journal with its running number: a judge may have to prove that it is zero.
"""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from fakes.vcenter import soap
from fakes.vcenter.calls import Context, Handler, SoapFault, invalid_argument
from fakes.vcenter.http import Reply

AUTH_MANAGER = "guestOperationsAuthManager"


def methods() -> list[str]:
    """Every method of the guest operations managers, by wsdl name."""
    guest = vim.vm.guest
    kinds: tuple[Any, ...] = (guest.AuthManager, guest.FileManager, guest.ProcessManager)
    kinds += (guest.AliasManager, guest.WindowsRegistryManager)
    return [method.wsdlName for kind in kinds for method in kind._methodInfo.values()]


class GuestOperations:
    """Answers every guest operation; `count` of them so far."""

    def __init__(self) -> None:
        self.count = 0

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return dict.fromkeys(methods(), self.refuse)

    async def refuse(self, context: Context) -> Reply:
        """The fault that vSphere gives when Tools do not offer guest operations."""
        self.count += 1
        moid = context.call.leaf.get("vm", "").strip()
        context.detail = {
            "guest_operation": self.count,
            "vm": context.world.places.vm_name(moid) or moid or None,
        }
        await context.require_login()
        if not moid:
            raise invalid_argument("vm")
        await context.require_power(vim.VirtualMachine(moid, None), "poweredOn")
        raise SoapFault(vim.fault.GuestOperationsUnavailable(), "The guest operations agent could not be contacted.")

    @staticmethod
    def auth_manager(context: Context) -> Reply | None:
        """The reference that vcsim lacks, for a read of `GuestOperationsManager.authManager`."""
        call = context.call
        if call.this_type != "GuestOperationsManager" or call.leaf.get("prop", "").strip() != "authManager":
            return None
        inner = f'<returnval type="GuestAuthManager" xsi:type="ManagedObjectReference">{AUTH_MANAGER}</returnval>'
        return Reply.xml(200, soap.response("Fetch", inner))
