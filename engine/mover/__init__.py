# SPDX-License-Identifier: MIT
"""The Data Mover: one process per task on the proxy, its peer on the repository, one on the repository for a restore.

`process` serves the control connection (`protocol`), `task` holds the state of the task, `datalink` is the connection
between movers, `source_pipeline`, `target_pipeline` and `restore_pipeline` are the data path's threads. `engine.console.receive` is
the other half of a restore to a file.
"""


def main(argv: list[str]) -> int:
    """Runs one mover (`engine.mover.process`)."""
    from engine.mover.process import main as run

    return run(argv)
