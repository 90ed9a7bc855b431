# SPDX-License-Identifier: MIT
"""The one list of commands. Each lives in a module of its own that is imported only when it is asked for.

A module offers `app`, a `typer.Typer` with one command (the command itself) or several (a group).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: its name, the module with its `app`, one line of help, and the panel of the help page."""

    name: str
    module: str
    help: str
    panel: str


LAB, BACKUP, EVIDENCE, TOOLS = "The lab", "Backup and restore", "Evidence and firewall", "Tools"

COMMANDS: tuple[Entry, ...] = (
    Entry("up", "lab.cli.up", "Bring a lab up.", LAB),
    Entry("down", "lab.cli.down", "Take a lab down; its folder stays.", LAB),
    Entry("status", "lab.cli.status", "Hosts, addresses and processes of a lab.", LAB),
    Entry("labs", "lab.cli.labs", "Every lab that has a folder.", LAB),
    Entry("exec", "lab.cli.execute", "Run a command on a host; its exit code is passed on.", LAB),
    Entry("shell", "lab.cli.shell", "A shell on a host.", LAB),
    Entry("logs", "lab.cli.logs", "Logs of a host's processes.", LAB),
    Entry("doctor", "lab.cli.doctor", "What is needed, what is missing, how to get it.", LAB),
    Entry("infra", "lab.cli.infra", "The backup infrastructure: show, rescan, proxies, repositories, limits.", BACKUP),
    Entry("job", "lab.cli.job", "Backup jobs: list, show, run, stop, create, edit, schedule, …", BACKUP),
    Entry("rest", "lab.cli.rest", "Tokens of the REST interface.", BACKUP),
    Entry("points", "lab.cli.points", "Restore points: list, verify, prune, import.", BACKUP),
    Entry("restore", "lab.cli.restore", "Restore a disk to a file, single files, or a new VM.", BACKUP),
    Entry("recover", "lab.cli.recover", "Instant recovery: a point's disks over NBD, until Ctrl-C.", BACKUP),
    Entry("runs", "lab.cli.runs", "The runs of a lab.", EVIDENCE),
    Entry("flows", "lab.cli.flows", "Steps and flows of a run, with their verdicts.", EVIDENCE),
    Entry("pcap", "lab.cli.pcap", "The capture of a run.", EVIDENCE),
    Entry("firewall", "lab.cli.firewall", "The live firewall: show, block, allow, reset.", EVIDENCE),
    Entry("topology", "lab.cli.topology", "Topology files: validate, schema.", TOOLS),
    Entry("fake", "lab.cli.fake", "One fake alone: vcenter, esxi, disk, san, bus.", TOOLS),
)

BY_NAME: dict[str, Entry] = {entry.name: entry for entry in COMMANDS}
