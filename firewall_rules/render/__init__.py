# SPDX-License-Identifier: MIT
"""Renderers: a policy in a firewall's own language (`base` is the interface, one module per language)."""

from firewall_rules.render.base import Renderer, marks
from firewall_rules.render.nft import Nft

__all__ = ["Nft", "Renderer", "marks"]
