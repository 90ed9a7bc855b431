# SPDX-License-Identifier: MIT
"""What an administrator would type in: the configuration files of every machine of the backup engine, from the topology.

Pure functions give the documents; `write` puts them into each host's `etc/`. The engine reads nothing else: no lab path
or role name is in these files that a real site would not have as well (addresses, thumbprints, credentials, folders).
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from lab.realise import postgres
from lab.realise.folders import LabFolder
from lab.topology import Topology
from lab.topology.model import Job, Role

SAN_PORT = 3260
DEVICES = Path("/run/vadplab/devices")
REST_PORT = 9419
POSTGRES_PORT = 5432


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
            **database(topology, lab, host),
            "rest_port": REST_PORT,
            "secrets_key": str(lab.host(host) / "etc" / "secrets.key"),
            "infrastructure": str(lab.host(host) / "etc" / "infrastructure.yaml"),
        }
    vm = topology.vm_of_guest(host)
    if role is Role.PROXY and vm is not None:
        uuid = topology.inventory().vm(vm.name).uuid
        document["proxy"] = {"vm_uuid": uuid, "devices": str(devices(host))}
    array = topology.array
    if array is not None and host in array.initiators:
        document["san"] = {
            "portals": [f"{topology.ip(array.host)}:{SAN_PORT}"],
            "initiator": initiator(host),
            "chap": {"username": array.username, "secret_file": str(chap_file(lab, host))},
        }
    if any(host == worker.host for worker in topology.backup.repositories):
        document["repository"] = str(var / "repository")
    return document


def database(topology: Topology, lab: LabFolder, host: str) -> dict[str, str]:
    """The backup server's configuration database: a file of its own, or PostgreSQL on the topology's `config_db` host."""
    for server in topology.by_role(Role.CONFIG_DB):
        url = f"postgresql://{postgres.USER}@{server}:{POSTGRES_PORT}/{postgres.DATABASE}"
        return {"database": url, "database_password": str(database_password(lab, host))}
    return {"database": f"sqlite:///{lab.host(host) / 'var' / 'configuration.db'}"}


def database_password(lab: LabFolder, host: str) -> Path:
    """The file with the password of the configuration database, on the backup server and on the database's own host."""
    return lab.host(host) / "etc" / "database.password"


def infrastructure(topology: Topology, lab: LabFolder) -> dict[str, Any]:
    """What the Backup Service is told to manage (`engine.model.infrastructure`)."""
    backup, vsphere = topology.backup, topology.vsphere
    servers: dict[str, dict[str, Any]] = {}
    for role, workers in (("proxy", backup.proxies), ("repository", backup.repositories)):
        for worker in workers:
            entry = servers.setdefault(
                worker.host,
                {
                    "name": worker.host,
                    "roles": [],
                    "max_tasks": worker.tasks,
                    "modes": modes(topology, worker.host),
                },
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


def modes(topology: Topology, host: str) -> list[str]:
    """The transport modes of a proxy: a VM is there for HotAdd, a machine with access to the SAN may use it."""
    if topology.host(host).role is Role.PROXY and topology.vm_of_guest(host) is not None:
        return ["hotadd"]
    san = topology.array is not None and host in topology.array.initiators
    return [*(["san"] if san else []), "nbdssl", "nbd"]


def initiator(host: str) -> str:
    """The iSCSI initiator name of a proxy."""
    return f"iqn.2026-11.lab.vadplab:{host}"


def chap_file(lab: LabFolder, host: str) -> Path:
    """File with the CHAP secret, on the initiator and on the array alike."""
    return lab.host(host) / "etc" / "chap"


def devices(host: str) -> Path:
    """Where the disks of a proxy VM's bus appear, as /dev/disk/by-id would show them; on the lab's own tmpfs."""
    return DEVICES / host


def host_key(lab: LabFolder, guest: str) -> Path:
    """The guest's SSH host key (private; the public one beside it with `.pub`)."""
    return lab.pki / f"{guest}-ssh"


def _job(job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "vms": list(job.vms),
        "mode": job.mode,
        "direction": job.direction,
        "guest": {"enabled": job.guest_scripts},
    }


def write(topology: Topology, lab: LabFolder) -> None:
    """Writes every engine machine's files into its `etc/` (the service's file with secrets is private)."""
    servers = [*topology.by_role(Role.CONFIG_DB), *topology.by_role(Role.BACKUP_SERVER)]
    if topology.by_role(Role.CONFIG_DB):
        _share_password([database_password(lab, host) for host in servers])
    if topology.array is not None:
        for host in (topology.array.host, *topology.array.initiators):
            file = chap_file(lab, host)
            file.touch(mode=0o600)
            file.write_text(topology.array.password + "\n")
    for host in engine_hosts(topology):
        etc = lab.host(host) / "etc"
        _write(etc / "engine.yaml", machine(topology, lab, host))
        if topology.host(host).role is Role.BACKUP_SERVER:
            _write(etc / "infrastructure.yaml", infrastructure(topology, lab))


def _share_password(files: list[Path]) -> None:
    """The same random password in each file; one that is there from an earlier `up` stays."""
    known = next((f.read_text() for f in files if f.exists()), "") or secrets.token_urlsafe(24)
    for file in files:
        file.touch(mode=0o600)
        file.write_text(known)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
