# SPDX-License-Identifier: MIT
"""The guest's `fsfreeze`: takes the place of util-linux's in /usr/sbin, does the same, and records what it did.

The record goes to the hypervisor over the guest's RPCI socket (`vadplab.freeze EVENT MOUNT BY`, invented), because a file
in the guest would have to be outside the frozen disk and visible outside the guest at once.
"""

from __future__ import annotations

TOOL = '''\
#!{interpreter} -IS
"""fsfreeze -f|-u MOUNTPOINT: FIFREEZE, FITHAW, and a record of it for the hypervisor."""

import fcntl
import os
import socket
import struct
import sys

ACTIONS = {{"-f": "freeze", "--freeze": "freeze", "-u": "unfreeze", "--unfreeze": "unfreeze"}}


def record(event, mount):
    by = os.environ.get("LOGNAME") or os.environ.get("USER") or str(os.getuid())
    text = f"vadplab.freeze {{event}} {{mount}} {{by}}".encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as rpci:
        rpci.settimeout(5)
        rpci.connect({rpci!r})
        rpci.sendall(b"RPCI" + struct.pack("<I", len(text)) + text)
        (size,) = struct.unpack("<I", rpci.recv(4, socket.MSG_WAITALL))
        return rpci.recv(size, socket.MSG_WAITALL)


def main(arguments):
    action = ACTIONS.get(arguments[0]) if len(arguments) == 2 else None
    if action is None:
        print("usage: fsfreeze -f|--freeze|-u|--unfreeze MOUNTPOINT", file=sys.stderr)
        return 1
    mount = arguments[1]
    fd = None
    try:
        fd = os.open(mount, os.O_RDONLY)
        if not os.path.ismount(mount):
            raise OSError(22, "not a mount point")
        if os.fstat(fd).st_dev != os.stat("/").st_dev:
            raise OSError(95, "Operation not supported")
        fcntl.ioctl(fd, 0xC0045877 if action == "freeze" else 0xC0045878, 0)
    except OSError as exc:
        print(f"fsfreeze: {{mount}}: {{action}} failed: {{exc.strerror}}", file=sys.stderr)
        return 1
    try:
        record("frozen" if action == "freeze" else "thawed", os.path.realpath(mount))
    except (OSError, struct.error) as exc:
        print(f"fsfreeze: no record: {{exc}}", file=sys.stderr)
        if action == "freeze":
            fcntl.ioctl(fd, 0xC0045878, 0)
        return 1
    return 0


sys.exit(main(sys.argv[1:]))
'''


def tool(interpreter: str, rpci: str) -> str:
    """The text of the tool for a guest with this Python and RPCI socket."""
    return TOOL.format(interpreter=interpreter, rpci=rpci)
