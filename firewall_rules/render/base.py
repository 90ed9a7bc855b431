# SPDX-License-Identifier: MIT
"""What every renderer is: a pure function from (policy, world, overlays) to a firewall's own language.

A new renderer subclasses `Renderer` in a module of this folder; the conformance suite (`tests/firewall_rules/render`)
finds it by reflection and holds it to the promises below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from firewall_rules.model import DEFAULT_RULE, Action, Addresses, Policy
from firewall_rules.overlay import Overlay

FIRST_OVERLAY_MARK = 0x1000


class Renderer(ABC):
    """Renders policies for one kind of firewall.

    Promises: same input, same text; nothing outside the policy is allowed; rules keep their order, overlays come before
    them, newest first; each rule's text carries its id; a default that denies comes last and is counted and logged;
    unknown names raise `UnknownEndpoint`; a rule whose roles have no host here is left out and named in a comment.
    """

    name: ClassVar[str]

    @abstractmethod
    def render(self, policy: Policy, addresses: Addresses, overlays: Sequence[Overlay] = ()) -> str:
        """The firewall's configuration as text, ready to load in one step."""

    @abstractmethod
    def decisions(self, text: str) -> list[tuple[str, Action]]:
        """What a rendered text decides for new connections, in order: (rule id, action); ends with the default."""


def marks(policy: Policy, overlays: Sequence[Overlay] = ()) -> dict[int, str]:
    """{connection mark: rule id} of everything that may allow a connection; stable for one policy and overlay list.

    Policy rules count from 1 in their order; overlays carry `FIRST_OVERLAY_MARK` plus the number in their id.
    """
    table = {number: rule.id for number, rule in enumerate(policy.rules, 1) if rule.action is Action.ALLOW}
    for overlay in overlays:
        if overlay.action is Action.ALLOW:
            table[overlay_mark(overlay)] = overlay.id
    return table


def overlay_mark(overlay: Overlay) -> int:
    """The connection mark of an overlay that allows."""
    digits = "".join(c for c in overlay.id.rpartition("-")[2] if c.isdigit())
    return FIRST_OVERLAY_MARK + int(digits or "0")


__all__ = ["DEFAULT_RULE", "FIRST_OVERLAY_MARK", "Renderer", "marks", "overlay_mark"]
