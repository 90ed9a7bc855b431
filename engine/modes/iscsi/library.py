# SPDX-License-Identifier: MIT
"""The functions of libiscsi (1.19, `libiscsi.so.7`) that are used, declared for ctypes."""

from __future__ import annotations

import ctypes
import ctypes.util
from ctypes import POINTER, Structure, c_char_p, c_int, c_ubyte, c_void_p
from functools import lru_cache

from engine.modes.errors import MissingInitiator

DISCOVERY = 1
NORMAL = 2
STATUS_GOOD = 0
STATUS_CHECK_CONDITION = 2
XFER_READ = 1
Callback = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p, c_void_p)
"""(context, status, command data, private data)."""


class Portal(Structure):
    """`struct iscsi_target_portal`: a list of `address:port,group`."""


Portal._fields_ = [("next", POINTER(Portal)), ("portal", c_char_p)]


class DiscoveredTarget(Structure):
    """`struct iscsi_discovery_address`: a list of targets."""


DiscoveredTarget._fields_ = [("next", POINTER(DiscoveredTarget)), ("name", c_char_p), ("portals", POINTER(Portal))]

_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "iscsi_create_context": (c_void_p, [c_char_p]),
    "iscsi_destroy_context": (c_int, [c_void_p]),
    "iscsi_set_targetname": (c_int, [c_void_p, c_char_p]),
    "iscsi_set_session_type": (c_int, [c_void_p, c_int]),
    "iscsi_set_initiator_username_pwd": (c_int, [c_void_p, c_char_p, c_char_p]),
    "iscsi_set_noautoreconnect": (None, [c_void_p, c_int]),
    "iscsi_set_timeout": (c_int, [c_void_p, c_int]),
    "iscsi_get_error": (c_char_p, [c_void_p]),
    "iscsi_get_fd": (c_int, [c_void_p]),
    "iscsi_which_events": (c_int, [c_void_p]),
    "iscsi_service": (c_int, [c_void_p, c_int]),
    "iscsi_connect_async": (c_int, [c_void_p, c_char_p, Callback, c_void_p]),
    "iscsi_login_async": (c_int, [c_void_p, Callback, c_void_p]),
    "iscsi_logout_async": (c_int, [c_void_p, Callback, c_void_p]),
    "iscsi_discovery_async": (c_int, [c_void_p, Callback, c_void_p]),
    "iscsi_scsi_command_async": (c_int, [c_void_p, c_int, c_void_p, Callback, c_void_p, c_void_p]),
    "scsi_create_task": (c_void_p, [c_int, POINTER(c_ubyte), c_int, c_int]),
    "scsi_free_scsi_task": (None, [c_void_p]),
    "scsi_task_add_data_in_buffer": (c_int, [c_void_p, c_int, c_void_p]),
}


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library. Raises MissingInitiator when it is not installed, or lacks a function."""
    name = ctypes.util.find_library("iscsi") or "libiscsi.so.7"
    try:
        library = ctypes.CDLL(name)
        for function, (result, arguments) in _SIGNATURES.items():
            declared = getattr(library, function)
            declared.restype = result
            declared.argtypes = arguments
    except (OSError, AttributeError) as exc:
        raise MissingInitiator(f"no user-space iSCSI initiator on this proxy: {exc}") from exc
    return library


def discovered(data: int | None) -> list[tuple[str, list[str]]]:
    """(target name, portals `address:port`) of the answer to a discovery."""
    found = []
    node = ctypes.cast(data, POINTER(DiscoveredTarget)) if data else None
    while node:
        portals = []
        portal = node.contents.portals
        while portal:
            portals.append((portal.contents.portal or b"").decode("ascii", "replace").split(",")[0])
            portal = portal.contents.next
        found.append(((node.contents.name or b"").decode("utf-8", "replace"), portals))
        node = node.contents.next
    return found
