# SPDX-License-Identifier: MIT
"""Finds the stock vcsim outside the lab, before anything is created: a build or a pull needs the user's own network."""

from __future__ import annotations

from fakes.vcenter import source
from lab.errors import VcsimMissing


def resolve(spec: str | None) -> tuple[str, str]:
    """What the lab is to run, and one line for people.

    Returns:
        `(spec, description)`: the spec is a path, or `docker:IMAGE`.

    Raises:
        VcsimMissing: it can not be had as asked.
    """
    try:
        found = source.locate("built" if spec == "go" else spec, source.default_cache())
    except source.VcsimMissing as exc:
        raise VcsimMissing(str(exc)) from exc
    if found.kind == "docker":
        return f"docker:{found.image}", found.describe()
    return str(found.executable), found.describe()
