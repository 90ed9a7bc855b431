# SPDX-License-Identifier: MIT
"""Backup Service (9392): jobs, infrastructure, sessions and resources; it starts and watches a Backup Manager per job run.

service    methods of 9392              jobs           queue, start and watch runs of jobs
broker     who holds which slots        aftermath      puts right what a dead manager left
rescan     steps i1-i3                  timer          starts jobs by their schedules
points     of the repositories          served_disks   of a point, for a console: a disk, files, instant recovery
restores   into new VMs                 sweep          destroys VMs that a dead restore left half-made
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Entry of the process (`engine.service.__main__`)."""
    from engine.service.__main__ import main as entry

    return entry(argv)
