# SPDX-License-Identifier: MIT
"""Restores of the Backup Service, step by step (r1 to r12 of `engine.steps`): into a new VM, single files, instant recovery.

`points` finds restore points and says which are intact; `vm` is the sequence of a restore into a VM and `machine` that VM in
vCenter; `files` lists and fetches single files; `recovery` serves a point's disks over NBD. A disk to a file: `engine.service.restore`.
"""
