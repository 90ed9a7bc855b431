# SPDX-License-Identifier: MIT
"""The world of the shipped topologies, as the rules see it, and shorthands for tests."""

from __future__ import annotations

from typing import Any

from firewall_rules.model import Policy, Rule
from firewall_rules.overlay import Overlay

WORLD = {
    "console": {"console": "10.77.1.10"},
    "backup_server": {"backup-server": "10.77.2.10"},
    "config_db": {"config-db": "10.77.12.10"},
    "proxy": {"proxy-1": "10.77.3.10", "proxy-2": "10.77.4.10"},
    "repository": {"repository-1": "10.77.5.10"},
    "vcenter": {"vcenter": "10.77.6.10"},
    "esxi": {"esxi-1": "10.77.7.10", "esxi-2": "10.77.8.10"},
    "san": {"san": "10.77.9.10"},
    "guest_windows": {"win-guest": "10.77.10.10"},
    "guest_linux": {"linux-guest": "10.77.11.10"},
}


def rule(id: str, source: Any, target: Any, ports: Any, action: str = "allow", **more: Any) -> Rule:
    return Rule.model_validate({"id": id, "from": source, "to": target, "ports": ports, "action": action, **more})


def policy(*rules: Rule, default: str = "drop") -> Policy:
    return Policy(name="test", profile="12.3", default=default, rules=rules)  # type: ignore[arg-type]


def overlay(id: str, action: str, source: Any, target: Any, ports: Any, **more: Any) -> Overlay:
    return Overlay.model_validate({"id": id, "action": action, "from": source, "to": target, "ports": ports, **more})
