# SPDX-License-Identifier: MIT
"""Backup Manager: one process per job run. `sequence` is the sequence of steps, in its order; its neighbours hold the details.

sequence       steps 2 to 22, in order                  peers     what the manager talks to, as interfaces
run            connections, slots, movers               links     those interfaces over real connections
tasks          the books: one task per VM disk          guest     freeze and thaw of one VM's guest
restore_point  its beginning, end and retention         reading   how each disk is read: the decisions
attached       disks that HotAdd may have attached      results   manifest and result document
errors         what a run itself can fail with

Shared with other processes: `engine.report`, `engine.snapshots` (step 22), `engine.vsphere.attached`, `engine.steps`, `engine.mover_steps`,
`engine.waiting`.
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Entry of the process (`engine.manager.__main__`)."""
    from engine.manager.__main__ import main as entry

    return entry(argv)
