# SPDX-License-Identifier: MIT
"""Restores of the Backup Service, step by step (r1 to r12 of `engine.steps`): a disk to a file, single files, into a new VM,
instant recovery.

`points` finds restore points and says which are intact; `vm` is the sequence of a restore into a VM and `machine` that VM in
vCenter; `disk` and `recovery` start on the repository what then is `served` to a console: a disk for a file or for single files
(`engine.filesystem`), a point's disks over NBD.
"""
