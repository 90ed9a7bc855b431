# SPDX-License-Identifier: MIT
"""What a lab is started with, as `vadplab up` hands it to the launcher."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Launch:
    """The options of one `vadplab up`. `world` false: namespaces, links and firewall only, no daemons."""

    topology: Path
    policy: Path | None = None
    vcsim: str | None = None
    capture: str = "headers"
    world: bool = True
    cwd: str = "/"
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Launch:
        """The reverse of `to_json`."""
        document = json.loads(text)
        return cls(
            topology=Path(document["topology"]),
            policy=Path(document["policy"]) if document["policy"] else None,
            vcsim=document["vcsim"],
            capture=document["capture"],
            world=document["world"],
            cwd=document["cwd"],
            options=document["options"],
        )
