# SPDX-License-Identifier: MIT
"""Overlays: what an operator blocks or allows live, on top of a policy, until it is reset.

An overlay names a matrix row, or from, to and ports (hosts or roles). The newest overlay that matches decides; then the
policy does. A block also cuts connections that are open, unless it is for new ones only.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from firewall_rules.model import Action, Identifier, Names, Ports, Protocol, Row, Strict


class Overlay(Strict):
    """One live change. `row` is the matrix row it was given as, or None."""

    id: Identifier
    action: Action
    row: str | None = None
    initiators: Names = Field(alias="from", min_length=1)
    responders: Names = Field(alias="to", min_length=1)
    protocol: Protocol = Protocol.TCP
    ports: Ports
    new_only: bool = False

    @property
    def cuts(self) -> bool:
        """True when open connections end too."""
        return self.action is not Action.ALLOW and not self.new_only

    def same_target(self, other: Overlay) -> bool:
        """True when both are about the same connections."""
        return self.target == other.target

    @property
    def target(self) -> tuple[object, ...]:
        """What it is about: row, or from, to, protocol and ports."""
        if self.row:
            return (self.row,)
        return (frozenset(self.initiators), frozenset(self.responders), self.protocol, self.ports)


def of_row(overlay_id: str, row: Row, action: Action, *, new_only: bool = False) -> Overlay:
    """An overlay on everything that a matrix row names."""
    return Overlay.model_validate(
        {
            "id": overlay_id,
            "action": action,
            "row": row.id,
            "from": row.initiators,
            "to": row.responders,
            "protocol": row.protocol,
            "ports": row.ports,
            "new_only": new_only,
        }
    )


def newest_first(overlays: Sequence[Overlay]) -> list[Overlay]:
    """The order in which overlays decide; the sequence is in the order in which they were made."""
    return list(reversed(overlays))
