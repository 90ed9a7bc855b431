# SPDX-License-Identifier: MIT
"""`docs/errors.md` beside the code: every error code with its exit code, and none that nothing raises any more."""

from __future__ import annotations

import subprocess
import sys

from lab.realise.mounts import CODE


def test_the_page_is_what_the_classes_say() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "scripts.error_page"], cwd=CODE, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    page = (CODE / "docs" / "errors.md").read_text()
    missing = sorted(set(printed.splitlines()) - set(page.splitlines()))
    surplus = sorted(set(page.splitlines()) - set(printed.splitlines()))
    assert (missing, surplus) == ([], []), "`make docs` writes the page anew"
