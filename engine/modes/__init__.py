# SPDX-License-Identifier: MIT
"""Transport modes: how the proxy reads a disk as of a snapshot, and how it writes into a restored VM's disk.

Concepts
    source      a disk opened for reading as of a snapshot (`source.Source`), whatever the mode.
    writer      a disk of a restored VM opened for writing (`writer.DiskWriter`), whatever the mode.
    mode        `san` (the LUN over iSCSI: `san`, `iscsi`, `layout`), `hotadd` (attached to the proxy VM: `hotadd`, `device`),
                `nbd` and `nbdssl` (Network mode, TCP 902: `network`, `nfc`); `auto` is san, hotadd, nbdssl in this order.
    opening     steps 18 to 20 of one task, with failover from mode to mode (`opening`).
    ticket      one-time permission of vCenter to open one NFC connection to the VM's host (`ticket`).
"""
