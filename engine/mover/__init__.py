# SPDX-License-Identifier: MIT
"""The Data Mover: one process per task on the proxy, its peer on the repository, one on the repository
for a restore, and its peer on the proxy when that is into a VM.

`process` serves the control connection (`protocol`), `task` holds the state of the task, `datalink` is the connection between
movers. The role of a mover (`roles`) says what it does there, each with the threads of its data path:

    source   reads a VM's disk          `source_side`, `source_pipeline`; `comparison` where nobody knows what changed
    target   writes a restore point     `target_pipeline`
    reader   reads a restore point      `reader_pipeline`: the whole disk, or what the console asks for
    writer   writes a VM's disk         `writer_side`, `writer_pipeline`

`held_disk` opens a VM's disk and gives it back. `engine.console.receive` is the other half of a restore to a file.
"""


def main(argv: list[str]) -> int:
    """Runs one mover (`engine.mover.process`)."""
    from engine.mover.process import main as run

    return run(argv)
