# SPDX-License-Identifier: MIT
"""The goals of the backup measurement, as ratios of medians."""

from __future__ import annotations

from bench import backup
from bench.rows import Goal, Row

Rows = dict[tuple[str, str], Row]


def of(rows: Rows) -> list[Goal]:
    """Every goal with what was found."""

    def seconds(group: str, name: str) -> float:
        return rows[group, name].median

    def faster(group: str, mode: str, than: str) -> float:
        return seconds(group, than) / seconds(group, backup.OURS[mode])

    found = []
    for mode in ("nbd", "san"):
        for than, wanted in ((backup.BORG, 2.0), (backup.RESTIC, 4.0), (backup.QEMU, 2.5), (backup.ALONE, 0.6)):
            text = f"{mode}: full at least {wanted} × {than}"
            found.append(Goal(text, wanted, faster(backup.FULL, mode, than)))
    for mode, wanted in (("nbdssl", 1.5), ("hotadd", 1.2)):
        text = f"{mode}: full at least {wanted} × {backup.QEMU}"
        found.append(Goal(text, wanted, faster(backup.FULL, mode, backup.QEMU)))
    for mode in ("nbd", "san"):
        share = seconds(backup.INCREMENTAL, backup.OURS[mode]) / seconds(backup.FULL, backup.OURS[mode])
        found.append(Goal(f"{mode}: incremental at most 0.06 × full", 0.06, share, at_least=False))
        times = faster(backup.INCREMENTAL, mode, backup.BORG)
        found.append(Goal(f"{mode}: incremental at least 10 × {backup.BORG}", 10.0, times))
    for name in (each for each in (backup.LOCAL, backup.LINK) if (backup.RESTORE, each) in rows):
        times = seconds(backup.RESTORE, backup.QEMU_RESTORE) / seconds(backup.RESTORE, name)
        found.append(Goal(f"{name}: at least 2 × {backup.QEMU_RESTORE}", 2.0, times))
    return found
