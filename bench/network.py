# SPDX-License-Identifier: MIT
"""A network of 13 hosts up and down: ours (namespaces, links, default-deny firewall) against Mininet's 12 hosts and a switch.

Each round builds and removes both, one after the other, each in a process and a network namespace of its own, so that
nothing touches the host's links. Mininet gets what it needs least: no controller, a Linux bridge as its switch.
The lab's whole way to *ready* (storage, ESXi, vCenter, guest, engine) is timed beside them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.rows import Options, Row

TITLE = "Network of 13 hosts, up and down"
TOOLS = {"mn": "mininet", "brctl": "bridge-utils"}
DEADLINE = 300.0

OURS = """
import asyncio, time
from lab import topology
from lab.realise import netns, kernel
from firewall_rules.load import load_policy
from lab.realise.firewall import Firewall
plan = topology.load(topology.find(None))
async def live():
    namespaces = netns.Namespaces(None)
    netns.create_hosts(plan, namespaces)
    firewall = Firewall(namespaces[plan.router])
    await firewall.apply(load_policy("default-12.3"), plan.addresses_by_role())
    netns.plug(plan.links(), namespaces, plan.router)
    up = time.perf_counter()
    await firewall.close()
    namespaces.close()
    return up
begun = time.perf_counter()
up = asyncio.run(live())
print(up - begun, time.perf_counter() - up)
"""

MININET = """
import time
from mininet.net import Mininet
from mininet.nodelib import LinuxBridge
from mininet.log import setLogLevel
setLogLevel("error")
begun = time.perf_counter()
net = Mininet(switch=LinuxBridge, controller=None)
switch = net.addSwitch("s1")
for number in range(12):
    net.addLink(net.addHost(f"h{number}"), switch)
net.start()
up = time.perf_counter()
net.stop()
print(up - begun, time.perf_counter() - up)
"""


def run(options: Options) -> list[Row]:
    """Seconds up, seconds down, and the lab's way to ready; ratios against Mininet's up."""
    ours: list[tuple[float, float]] = []
    mininet: list[tuple[float, float]] = []
    ready: list[float] = []
    for number in range(options.rounds):
        ours.append(_timed(sys.executable, OURS))
        mininet.append(_timed("/usr/bin/python3", MININET))
        ready.append(_lab_ready(options.scratch / str(number)))
    rows = [
        Row("vadplab, 13 hosts up", [up for up, _ in ours], note="namespaces, links, rules; links awaited"),
        Row("Mininet, 12 hosts and a switch up", [up for up, _ in mininet], note="no controller, no rules"),
        Row("vadplab, down", [down for _, down in ours]),
        Row("Mininet, down", [down for _, down in mininet]),
        Row("vadplab up: the whole lab ready", ready, note="all daemons answer, guest booted, infrastructure read"),
    ]
    _compare(rows, {"Mininet up": rows[1], "Mininet down": rows[3]})
    return rows


def _compare(rows: list[Row], references: dict[str, Row]) -> None:
    for name, reference in references.items():
        for row in rows:
            if row is not reference and (name.endswith("down")) == row.name.endswith("down"):
                row.ratios[name] = round(reference.median / row.median, 2)


def _timed(python: str, program: str) -> tuple[float, float]:
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--propagation", "private", python, "-c", program],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{python}: {done.stderr.strip()[-500:]}")
    up, down = done.stdout.split()[-2:]
    return float(up), float(down)


def _lab_ready(home: Path) -> float:
    vadplab = str(Path(sys.executable).with_name("vadplab"))
    env = {**os.environ, "VADPLAB_HOME": str(home)}

    def command(*argv: str) -> None:
        subprocess.run([vadplab, "--lab", "bench", *argv], env=env, capture_output=True, timeout=DEADLINE, check=True)

    up = _clock(lambda: command("up"))
    command("down", "--purge")
    return up


def _clock(what: Callable[[], None]) -> float:
    begun = time.perf_counter()
    what()
    return time.perf_counter() - begun
