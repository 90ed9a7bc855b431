# SPDX-License-Identifier: MIT
"""What must not reach vcsim as it is: what drives the simulator, ends it or leads out of it, and changes beside a snapshot."""

from __future__ import annotations

import re
from urllib.parse import unquote

from pyVmomi import vim, vmodl

from fakes.vcenter import soap
from fakes.vcenter.calls import Context, SoapFault, not_found
from fakes.vcenter.http import Body, Reply, Request
from fakes.vcenter.soap import Call

# `SET.` writes any property and a wrong one ends vcsim; `RUN.` starts containers; `ip0` is an alias of a `SET.` key
# (vcsim reference sections 11 and 12)
_DRIVING = re.compile(r"^(SET\.|RUN\.)|^ip0$", re.IGNORECASE)

# Go's durations; vcsim's Login ends in a panic over anything else (vcsim reference section 4)
_TIMEOUT = "config.vmacore.soap.sessionTimeout"
_DURATION = re.compile(r"(\d+(\.\d+)?(h|m|s|ms))+")

# tasks that change a VM: one at a time and not while a snapshot is being made (vcsim reference section 9)
EXCLUSIVE = frozenset(
    (
        "ReconfigVM_Task",
        "ResetVM_Task",
        "RelocateVM_Task",
        "MigrateVM_Task",
        "Destroy_Task",
        "Rename_Task",
    )
)
POWER = {"PowerOnVM_Task": True, "PowerOffVM_Task": False, "SuspendVM_Task": False}

# vcsim's own pages, which no vCenter has; the first is shown where the inventory is vcsim's own too
HIDDEN_PATHS = ("/about", "/debug")
_NAMING = "/rest/com/vmware/content/"
_MAX_JSON = 1 << 20
# served by vcsim without asking for a session
SESSION_PATHS = ("/folder", "/nfc", "/guestFile")


async def update_options(context: Context) -> Reply:
    """UpdateOptions(changedValue): not of what the simulator keeps for itself, no time-out that it can not read."""
    for option in soap.arguments(context.raw).get("changedValue") or []:
        if option.key.startswith("vcsim."):
            raise SoapFault(vim.fault.InvalidName(name=option.key), f"There is no option {option.key[:64]!r}.")
        if option.key == _TIMEOUT and not _DURATION.fullmatch(str(option.value)):
            text = f"{_TIMEOUT} is a duration such as '30m' or '90s'."
            raise SoapFault(vmodl.fault.InvalidArgument(invalidProperty="changedValue"), text)
    return await context.forward()


async def is_climbing(request: Request) -> bool:
    """Whether a request beside SOAP names a file outside, in its path or (a content library's) in its JSON."""
    if _climbs(unquote(request.path)):
        return True
    if not request.path.startswith(_NAMING) or request.body.done:
        return False
    raw = await request.body.read(_MAX_JSON)
    request.body = Body.of(raw)
    return _climbs(raw.decode("utf-8", "replace").replace("\\u002e", ".").replace("\\/", "/"))


def _climbs(text: str) -> bool:
    return ".." in re.split(r"[/\\\"]+", text)


async def no_datastore(context: Context) -> Reply:
    """CreateLocalDatastore, CreateNasDatastore: vcsim would show any folder of this machine."""
    await context.require_login()
    raise SoapFault(vmodl.fault.NotSupported(), "This host takes no further datastores.")


async def set_locale(context: Context) -> Reply:
    """SetLocale(locale): there are no other texts than these."""
    await context.require_login()
    return Reply.xml(200, soap.reply("SetLocale"))


async def reload(context: Context) -> Reply:
    """Reload of an entity: there is nothing to read anew, and vcsim ends at that of a folder."""
    await context.require_login()
    entity = context.world.admin.object(context.call.this_type, context.call.this_id)
    try:
        await context.world.admin.properties(entity, "name")
    except vmodl.fault.ManagedObjectNotFound as exc:
        raise not_found(entity) from exc
    return Reply.xml(200, soap.reply("Reload"))


def check(call: Call) -> None:
    """Raises SoapFault when a client sends a key that drives the simulator, or a path that leads out of a datastore.

    vcsim joins such a path to its stub folder, and reads, makes and deletes whatever it finds there.
    """
    for path in call.climbing:
        value = vim.fault.InvalidDatastorePath(datastorePath=path)
        raise SoapFault(value, f"Invalid datastore path '{path[:256]}'.")
    for key in call.option_keys:
        if _DRIVING.search(key):
            raise SoapFault(
                vmodl.fault.InvalidArgument(invalidProperty="extraConfig"),
                f"The key {key[:64]!r} is reserved and can not be set by a client.",
            )
