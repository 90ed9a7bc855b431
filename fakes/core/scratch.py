# SPDX-License-Identifier: MIT
"""A temporary folder that does not outlive the process that uses it, however that ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A temporary folder that goes even when this process is killed: a forked child waits for that and removes it.

    To be entered while the process has one thread.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"vadplab-{name}-"))
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()  # an interrupt from the terminal is not for it
            os.close(writing)
            for fd in (1, 2):  # whoever reads our output must see its end when we end
                os.close(fd)
            os.read(reading, 1)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os._exit(0)
    os.close(reading)
    try:
        yield folder
    finally:
        os.close(writing)
        os.waitpid(pid, 0)
