# SPDX-License-Identifier: MIT
"""The topology: which hosts there are, what they are, where they stand. Data and pure functions, no privileges."""

from lab.topology.load import dump, find, load, parse, schema
from lab.topology.model import Host, Job, Role, Vm, Worker
from lab.topology.topology import Link, Topology, interface_name

__all__ = [
    "Host",
    "Job",
    "Link",
    "Role",
    "Topology",
    "Vm",
    "Worker",
    "dump",
    "find",
    "interface_name",
    "load",
    "parse",
    "schema",
]
