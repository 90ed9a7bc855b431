# SPDX-License-Identifier: MIT
"""A user-space iSCSI initiator: libiscsi, driven by an event loop of ours with deadlines.

`library` declares the C functions, `scsi` is the commands and their answers (pure), `session` is one connection to a portal:
discovery, or a target with its LUNs. Only reading is implemented: there is no command here that changes a LUN.
"""
