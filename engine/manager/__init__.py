# SPDX-License-Identifier: MIT
"""Backup Manager: one process per job run. `sequence` is the sequence of steps, in its order; its neighbours hold the details.

sequence   steps 3 to 22, in order         peers      what the manager talks to, as interfaces
tasks      one task per VM disk            links      those interfaces over real connections
snapshot   mark, create, commit            guest      freeze and thaw of one VM's guest
report     step events, progress, result
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Entry of the process (`engine.manager.__main__`)."""
    from engine.manager.__main__ import main as entry

    return entry(argv)
