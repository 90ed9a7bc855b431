# SPDX-License-Identifier: MIT
"""The infrastructure file: what an administrator adds to the Backup Service. `infra rescan` reads it into the database.

    vcenters:
      - {name: vcenter, address: vcenter, port: 443, thumbprint: "AA:BB:…", username: …, password: …}
    servers:
      - {name: proxy-1, roles: [proxy], address: proxy-1, port: 6162, max_tasks: 2, modes: [san, nbdssl, nbd]}
      - {name: repository-1, roles: [repository], max_tasks: 4}
    credentials:
      - {name: linux-root, username: root, password: …}        # or private_key: FILE
    guests:
      - {vm: linux-vm, credentials: linux-root, host_key: "ssh-ed25519 AAAA…"}
    jobs:
      - name: demo
        vms: [linux-vm, db-vm]
        mode: nbdssl                                           # or nbd, san, hotadd, auto (the best that a proxy can)
        failover: true                                         # SAN and HotAdd to Network mode
        cbt: true                                              # changed block tracking, switched on where it is off
        retention: {points: 14, days: null}                    # keep the newest points, or those of some days; null: all
        direction: proxy-to-repository                         # or repository-to-proxy
        guest: {enabled: true, pre_freeze: FILE, post_thaw: FILE}
        rules: {throttle: null, compression_level: 1, workers: 2}

`address` defaults to the name; a machine's name is also its certificate's name. `thumbprint` is the SHA-1 or SHA-256 of the
vCenter's certificate; without it the first one seen by a rescan is kept. Relative paths are relative to the file's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from engine.config import SERVICE_PORT, TRANSPORT_PORT, FilePath, Port, problems
from engine.errors import InputError
from engine.modes.names import NBDSSL, NETWORK, JobMode, Mode

__all__ = ["SERVICE_PORT", "Infrastructure", "load"]

Direction = Literal["proxy-to-repository", "repository-to-proxy"]
SCRIPTS = Path(__file__).resolve().parent.parent / "guest" / "scripts"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VCenter(_Strict):
    """A vCenter server and the account that the engine uses there."""

    name: str
    address: str = ""
    port: Port = 443
    thumbprint: str | None = None
    username: str
    password: SecretStr

    @model_validator(mode="before")
    @classmethod
    def _address(cls, data: Any) -> Any:
        return _address_is_name(data)


class ManagedServer(_Strict):
    """A machine with a Transport Service: a proxy, a repository, or both. `max_tasks` is its limit of concurrent tasks."""

    name: str
    address: str = ""
    port: Port = TRANSPORT_PORT
    roles: list[Literal["proxy", "repository"]] = Field(min_length=1)
    max_tasks: int = Field(default=2, ge=1, le=512)
    modes: list[Mode] = list(NETWORK)

    @model_validator(mode="before")
    @classmethod
    def _address(cls, data: Any) -> Any:
        return _address_is_name(data)


class Credentials(_Strict):
    """An account in a guest: a password or a private key (a file, read at rescan)."""

    name: str
    username: str
    password: SecretStr | None = None
    private_key: FilePath | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.password is None) == (self.private_key is None):
            raise ValueError("give either password or private_key")
        return self


class Guest(_Strict):
    """How a VM's guest is reached. `host_key` pins the guest's SSH host key (one line of known_hosts without the host)."""

    vm: str
    credentials: str
    host_key: str | None = None
    port: Port = 22


class GuestProcessing(_Strict):
    """Scripts kept on the backup server and run in Linux guests around the snapshot. `timeout`: seconds for each script;
    `thaw_after`: seconds after which the guest thaws itself when the engine is gone."""

    enabled: bool = False
    pre_freeze: FilePath = SCRIPTS / "pre-freeze.sh"
    post_thaw: FilePath = SCRIPTS / "post-thaw.sh"
    timeout: float = Field(default=30.0, gt=0, le=3600)
    thaw_after: int = Field(default=60, ge=5, le=3600)


class MoverRules(_Strict):
    """Rules that the Backup Manager gives to the Data Movers in step 6. `throttle`: bytes a second."""

    throttle: int | None = Field(default=None, ge=65536)
    compression_level: int = Field(default=1, ge=1, le=19)
    workers: int = Field(default=2, ge=1, le=16)


class Retention(_Strict):
    """What stays after a run: the newest `points` of each VM, and those not older than `days`; at least one of the two is set."""

    points: int | None = Field(default=None, ge=1, le=9999)
    days: int | None = Field(default=None, ge=1, le=36500)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.points is None and self.days is None:
            raise ValueError("give points, days or both")
        return self


class Job(_Strict):
    """A backup job. `snapshot_timeout`: seconds for creating or committing a snapshot. `failover`: a task may be read in a lesser
    transport mode. `cbt`: vCenter's changed block tracking is used, and switched on. `retention`: null keeps every point."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    vms: list[str] = Field(min_length=1)
    vcenter: str | None = None
    mode: JobMode = NBDSSL
    direction: Direction = "proxy-to-repository"
    guest: GuestProcessing = GuestProcessing()
    rules: MoverRules = MoverRules()
    failover: bool = True
    cbt: bool = True
    retention: Retention | None = None
    snapshot_timeout: float = Field(default=300.0, gt=0)


class Infrastructure(_Strict):
    """The whole file."""

    vcenters: list[VCenter] = Field(min_length=1)
    servers: list[ManagedServer] = Field(min_length=2)
    credentials: list[Credentials] = []
    guests: list[Guest] = []
    jobs: list[Job] = []

    @model_validator(mode="after")
    def _references(self) -> Self:
        for kind, names in (
            ("vCenter", [v.name for v in self.vcenters]),
            ("server", [s.name for s in self.servers]),
            ("credentials", [c.name for c in self.credentials]),
            ("guest", [g.vm for g in self.guests]),
            ("job", [j.name for j in self.jobs]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"two entries of kind {kind} have the same name")
        for role in ("proxy", "repository"):
            if not any(role in s.roles for s in self.servers):
                raise ValueError(f"no server has the role {role}")
        accounts = {c.name for c in self.credentials}
        for guest in self.guests:
            if guest.credentials not in accounts:
                raise ValueError(f"guest {guest.vm}: unknown credentials {guest.credentials}")
        known = {v.name for v in self.vcenters}
        for job in self.jobs:
            if job.vcenter is not None and job.vcenter not in known:
                raise ValueError(f"job {job.name}: unknown vCenter {job.vcenter}")
            if len(set(job.vms)) != len(job.vms):
                raise ValueError(f"job {job.name}: a VM stands twice in it")
        return self


def load(path: Path) -> Infrastructure:
    """Reads the file. Raises InputError that names the field, never its value."""
    try:
        raw: Any = yaml.safe_load(path.read_text())
    except OSError as exc:
        raise InputError(f"infrastructure {path} cannot be read: {exc.strerror}") from exc
    except (UnicodeDecodeError, yaml.YAMLError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"infrastructure {path} is not YAML{where}") from exc
    try:
        return Infrastructure.model_validate(raw, context={"folder": path.resolve().parent})
    except ValidationError as exc:
        raise InputError(f"infrastructure {path}: {problems(exc)}") from exc


def _address_is_name(data: Any) -> Any:
    return {**data, "address": data.get("name")} if isinstance(data, dict) and not data.get("address") else data
