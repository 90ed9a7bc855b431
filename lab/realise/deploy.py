# SPDX-License-Identifier: MIT
"""What an administrator would type in: the configuration files of every machine of the backup engine, from the topology.

Pure functions give the documents; `write` puts them into each host's `etc/`. The engine reads nothing else: no lab path
or role name is in these files that a real site would not have as well (addresses, thumbprints, credentials, folders).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from lab.realise.folders import LabFolder
from lab.topology import Topology
from lab.topology.model import Job, Role

ENGINE_ROLES = (Role.CONSOLE, Role.BACKUP_SERVER, Role.PROXY, Role.REPOSITORY)
DIRECTIONS = {"target": "proxy-to-repository", "source": "repository-to-proxy"}
DEFAULT_MODE = "nbdssl"


def thumbprint(certificate: Path) -> str:
    """SHA-256 of the first certificate of a PEM file, colon separated."""
    der = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.DER)
    digest = hashlib.sha256(der).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))


def engine_hosts(topology: Topology) -> list[str]:
    """The hosts that run a process of the engine: console, backup server, and the proxies and repositories of the job."""
    workers = {w.host for w in (*topology.backup.proxies, *topology.backup.repositories)}
    named = [n for role in (Role.CONSOLE, Role.BACKUP_SERVER) for n in topology.by_role(role)]
    return [*named, *(n for n in topology.hosts if n in workers and n not in named)]


def machine(topology: Topology, lab: LabFolder, host: str) -> dict[str, Any]:
    """The configuration of one machine (`engine.config`)."""
    role = topology.host(host).role
    var = lab.host(host) / "var"
    server = next(iter(topology.by_role(Role.BACKUP_SERVER)))
    document: dict[str, Any] = {
        "name": host,
        "listen": topology.ip(host),
        "port": {Role.BACKUP_SERVER: 9392, Role.CONSOLE: 0}.get(role, 6162),
        "identity": {"certificate": str(lab.pki / f"{host}.pem"), "ca": str(lab.pki / "ca.pem")},
        "keylog": str(var / "keys.log"),
        "events": str(var / "events.jsonl"),
        "resolver": topology.addresses(),
        "backup_server": {"name": server},
    }
    if role is Role.BACKUP_SERVER:
        document["service"] = {
            "database": f"sqlite:///{var / 'configuration.db'}",
            "secrets_key": str(lab.host(host) / "etc" / "secrets.key"),
            "infrastructure": str(lab.host(host) / "etc" / "infrastructure.yaml"),
        }
    if any(host == worker.host for worker in topology.backup.repositories):
        document["repository"] = str(var / "repository")
    return document


def infrastructure(topology: Topology, lab: LabFolder) -> dict[str, Any]:
    """What the Backup Service is told to manage (`engine.model.infrastructure`)."""
    backup, vsphere = topology.backup, topology.vsphere
    servers: dict[str, dict[str, Any]] = {}
    for role, workers in (("proxy", backup.proxies), ("repository", backup.repositories)):
        for worker in workers:
            entry = servers.setdefault(
                worker.host, {"name": worker.host, "roles": [], "max_tasks": worker.tasks, "modes": ["nbdssl", "nbd"]}
            )
            entry["roles"].append(role)
    guests = []
    for account in backup.credentials:
        vm = topology.vm_of_guest(account.host)
        if vm is not None:
            guest: dict[str, Any] = {"vm": vm.name, "credentials": account.host}
            key = host_key(lab, account.host).with_suffix(".pub")
            if key.exists():
                guest["host_key"] = " ".join(key.read_text().split()[:2])
            guests.append(guest)
    return {
        "vcenters": [
            {
                "name": name,
                "thumbprint": thumbprint(lab.pki / f"{name}.pem"),
                "username": vsphere.username,
                "password": vsphere.password,
            }
            for name in topology.by_role(Role.VCENTER)
        ],
        "servers": list(servers.values()),
        "credentials": [{"name": c.host, "username": c.username, "password": c.password} for c in backup.credentials],
        "guests": guests,
        "jobs": [_job(job) for job in backup.jobs],
    }


def host_key(lab: LabFolder, guest: str) -> Path:
    """The guest's SSH host key (private; the public one beside it with `.pub`)."""
    return lab.pki / f"{guest}-ssh"


def _job(job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "vms": list(job.vms),
        "mode": DEFAULT_MODE if job.mode == "auto" else job.mode,
        "direction": DIRECTIONS[job.direction],
        "guest": {"enabled": job.guest_scripts},
    }


def write(topology: Topology, lab: LabFolder) -> None:
    """Writes every engine machine's files into its `etc/` (the service's file with secrets is private)."""
    for host in engine_hosts(topology):
        etc = lab.host(host) / "etc"
        _write(etc / "engine.yaml", machine(topology, lab, host))
        if topology.host(host).role is Role.BACKUP_SERVER:
            _write(etc / "infrastructure.yaml", infrastructure(topology, lab))


def _write(path: Path, document: dict[str, Any]) -> None:
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
