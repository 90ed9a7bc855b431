# SPDX-License-Identifier: MIT
"""The former place of `engine.snapshots`."""

from engine.snapshots import NAME, PAUSES, Committer, SnapshotOrphaned, commit, description, mark

__all__ = ["NAME", "PAUSES", "Committer", "SnapshotOrphaned", "commit", "description", "mark"]
