# SPDX-License-Identifier: MIT
"""Bringing the world of a topology up, in order: hosts, firewall, links, then the daemons of every host.

The firewall stands before the first link does, so that no packet ever passes without a rule.
"""

from __future__ import annotations

import asyncio
import time

import yaml

from firewall_rules.load import dump_policy, load_policy
from lab import pki, topology
from lab.observe.recorder import Recorder, Sources
from lab.realise import daemons, deploy, netns
from lab.realise.firewall import Firewall
from lab.realise.supervisor import Supervisor
from lab.topology.model import Role

DEFAULT_POLICY = "default-12.3"


async def start_world(supervisor: Supervisor) -> None:
    """Builds everything; raises a VadplabError when something can not be built (the caller then takes it all down)."""
    plan, lab = supervisor.topology, supervisor.lab
    lab.topology_file.write_text(topology.dump(plan))
    lab.inventory_file.write_text(yaml.safe_dump(plan.inventory().model_dump(mode="json"), sort_keys=False))
    pki.ensure(lab.pki, plan.addresses())
    for guest in plan.by_role(Role.GUEST_LINUX):
        pki.ensure_ssh_host_key(deploy.host_key(lab, guest))
    begun = time.monotonic()
    await asyncio.to_thread(netns.create_hosts, plan, supervisor.namespaces)
    supervisor.report("hosts", count=len(plan.hosts), ms=_ms(begun))
    begun = time.monotonic()
    supervisor.firewall = await start_firewall(supervisor)
    supervisor.report("firewall", policy=supervisor.facts["policy"], ms=_ms(begun))
    begun = time.monotonic()
    links = plan.links()
    await asyncio.to_thread(netns.plug, links, supervisor.namespaces, plan.router)
    supervisor.report("links", count=len(links), ms=_ms(begun))
    if supervisor.launch.world:
        supervisor.facts["vcsim"] = supervisor.launch.vcsim
        recorder = start_recorder(supervisor)
        await daemons.start(supervisor)
        await daemons.first_rescan(supervisor, recorder)


def start_recorder(supervisor: Supervisor) -> Recorder:
    """Control methods `run.…` record a run: capture, firewall log, connection tracking, and what engine and fakes write."""
    lab = supervisor.lab
    assert supervisor.firewall is not None
    recorder = Recorder(
        lab.runs,
        netns=supervisor.namespaces[supervisor.topology.router],
        firewall=supervisor.firewall,
        sources=Sources(lab.path),
        topology=lab.topology_file,
        mode="full" if supervisor.launch.capture == "full" else "headers",
    )
    supervisor.register("run", recorder)
    supervisor.on_close(recorder.close)
    return recorder


async def start_firewall(supervisor: Supervisor) -> Firewall:
    """Puts the policy in force on the router; control methods `firewall.…` go to it from then on."""
    policy = load_policy(supervisor.launch.policy or DEFAULT_POLICY)
    firewall = Firewall(supervisor.namespaces[supervisor.topology.router])
    supervisor.on_close(firewall.close)
    await firewall.apply(policy, supervisor.topology.addresses_by_role())
    supervisor.lab.policy_file.write_text(dump_policy(policy))
    supervisor.facts["policy"] = policy.name
    supervisor.register("firewall", firewall)
    return firewall


def _ms(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)
