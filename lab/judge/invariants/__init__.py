# SPDX-License-Identifier: MIT
"""The invariants of a run (flow reference, section 2.3), each from the sources that the design names and never from the
engine's log alone. Step marks of the engine only say *when* to look at packets and journals.

I1 no packet to a guest network before step 9 · I2 nothing that is protected calls a backup component · I3 the order of
first SYNs · I4 902 only after the ticket, at the ticket's address · I5 a disk's bytes on the path of its mode · I6 VIX leaves
the guest's interface alone, and Linux guests get none · I7 one Data Mover per task on the proxy · I8 the snapshot exists
between 15 and 22 and is gone afterwards · I9 a guest is frozen only up to 16 · I10 no loopback rules.
"""

from __future__ import annotations

from collections.abc import Callable

from lab.judge.evidence import Evidence
from lab.judge.invariants.model import BROKEN, HELD, NOT_APPLICABLE, Invariant, Scene
from lab.judge.invariants.network import guests_untouched, no_loopback_rules, nobody_calls_back
from lab.judge.invariants.nfc import one_mover_per_task, tickets_first
from lab.judge.invariants.order import order_of_steps
from lab.judge.invariants.state import guests_thawed, snapshots_in_bounds
from lab.judge.invariants.traffic import bytes_by_path, guests_behind_tools
from lab.judge.marks import step_marks
from lab.judge.verdict import Flow

__all__ = ["BROKEN", "HELD", "NOT_APPLICABLE", "Invariant", "check"]

ALL: tuple[Callable[[Scene], Invariant], ...] = (
    guests_untouched,
    nobody_calls_back,
    order_of_steps,
    tickets_first,
    bytes_by_path,
    guests_behind_tools,
    one_mover_per_task,
    snapshots_in_bounds,
    guests_thawed,
    no_loopback_rules,
)
JOB_ONLY = frozenset(
    {order_of_steps, bytes_by_path, guests_behind_tools, one_mover_per_task, snapshots_in_bounds, guests_thawed}
)


def check(evidence: Evidence, flows: list[Flow]) -> list[Invariant]:
    """Every invariant of the run. Those about a job's steps do not apply to a restore or a rescan."""
    scene = Scene(evidence, [f for f in flows if f.attempted], step_marks(evidence.events))
    found = []
    for rule in ALL:
        result = rule(scene)
        if evidence.kind != "job" and rule in JOB_ONLY and result.state != BROKEN:
            result = Invariant(result.id, NOT_APPLICABLE, f"a {evidence.kind} has no such steps", result.source)
        found.append(result)
    return found
