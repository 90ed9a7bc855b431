# SPDX-License-Identifier: MIT
"""Transport modes: how the proxy reads a disk as of a snapshot.

Concepts
    source      a disk opened for reading as of a snapshot (`engine.modes.source.Source`), whatever the mode.
    mode        `nbd`, `nbdssl` (Network mode: TCP 902, `network`). `hotadd` and `san` will be further modules that
                give the same interface; the rest of the engine does not change with them.
    ticket      one-time permission of vCenter to open one NFC connection to the VM's host (`ticket`).
"""
