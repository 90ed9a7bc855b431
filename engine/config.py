# SPDX-License-Identifier: MIT
"""Configuration of an engine process: one plain YAML file, given by `--config`, also read by its child processes.

    name: proxy-1                   this machine: its certificate's name, `host` in events and errors
    listen: 10.77.4.10              address to listen on
    port: 6162                      9392 for the Backup Service; none for a console
    identity: {certificate: FILE, ca: FILE}
    keylog: FILE                    TLS keys in the NSS key log format, for captures (optional)
    events: FILE                    events of this machine, one JSON object a line (optional)
    resolver: {esxi-1: 10.77.8.10}  names that are looked up here before the system's resolver
    roles: [proxy, repository]      Transport Service: what the machine is (default: repository with a `repository`, else proxy)
    mover_ports: [2500, 3300]       Transport Service: first and last port of its Data Movers
    repository: FOLDER              Transport Service of a repository: where restore points are kept
    proxy: {vm_uuid: UUID, devices: /dev/disk/by-id}                       proxy that is a VM: HotAdd
    san: {portals: [10.77.9.10:3260], initiator: IQN, chap: {username: NAME, secret_file: FILE}}   proxy with access to the SAN
    service:                        Backup Service only
      database: URL                 sqlite:///FILE or postgresql://USER@HOST:5432/DATABASE (TLS, verified against `ca`)
      database_password: FILE       of a PostgreSQL user
      secrets_key: FILE
      infrastructure: FILE
      rest_port: 9419               REST service; none without it
    backup_server: {name: backup-server, port: 9392, rest_port: 9419}     console only

Relative paths are relative to the file's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from engine.dialer import Dialer
from engine.errors import InputError
from engine.events import EventLog
from engine.rpc.identity import Identity

SERVICE_PORT = 9392
TRANSPORT_PORT = 6162
REST_PORT = 9419
MOVER_PORTS = (2500, 3300)


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return folder / path if folder is not None else path


FilePath = Annotated[Path, AfterValidator(_beside_the_file)]
Port = Annotated[int, Field(ge=0, le=65535)]
Role = Literal["proxy", "repository"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IdentityFiles(_Strict):
    """Files of this machine's identity."""

    certificate: FilePath
    ca: FilePath


class ServiceSettings(_Strict):
    """What only the Backup Service needs. `infrastructure` is read by `infra rescan` (`engine.model.infrastructure`)."""

    database: str
    database_password: FilePath | None = None
    rest_port: Port | None = None
    secrets_key: FilePath
    infrastructure: FilePath


class BackupServer(_Strict):
    """Where a console finds the Backup Service."""

    name: str = "backup-server"
    port: Port = SERVICE_PORT
    rest_port: Port = REST_PORT


class ProxyVm(_Strict):
    """A proxy that is a VM: its BIOS UUID, by which it finds itself in vCenter, and where its disks appear."""

    vm_uuid: str = Field(pattern=r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$")
    devices: FilePath = Path("/dev/disk/by-id")


class Chap(_Strict):
    """CHAP name, and the file whose first line is the secret."""

    username: str = Field(min_length=1)
    secret_file: FilePath


class San(_Strict):
    """A proxy with access to the SAN: iSCSI portals `address:port` and the initiator's name."""

    portals: list[Annotated[str, Field(pattern=r"^[^\s:]+(:\d{1,5})?$")]] = Field(min_length=1)
    initiator: str = Field(pattern=r"^(iqn|eui|naa)\.\S+$")
    chap: Chap | None = None


class EngineConfig(_Strict):
    """One machine's configuration."""

    name: str = Field(min_length=1)
    listen: str = "127.0.0.1"
    port: Port = 0
    identity: IdentityFiles
    keylog: FilePath | None = None
    events: FilePath | None = None
    resolver: dict[str, str] = Field(default_factory=dict)
    roles: list[Role] | None = None
    mover_ports: tuple[Port, Port] = MOVER_PORTS
    repository: FilePath | None = None
    proxy: ProxyVm | None = None
    san: San | None = None
    service: ServiceSettings | None = None
    backup_server: BackupServer = BackupServer()

    def make_identity(self) -> Identity:
        """This machine's TLS identity."""
        return Identity(self.identity.certificate, self.identity.ca, self.keylog)

    def event_log(self, process: str, *, session: str | None = None) -> EventLog:
        """This machine's event file, for one process."""
        if self.events is not None:
            self.events.parent.mkdir(parents=True, exist_ok=True)
        return EventLog(self.events, host=self.name, process=process, session=session)

    def dialer(self, events: EventLog) -> Dialer:
        """The dialer of a process that writes to `events`."""
        return Dialer(events, self.resolver)


def load(path: Path) -> EngineConfig:
    """Reads a configuration file. Raises InputError with the field's name and what is wrong with it."""
    try:
        raw: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise InputError(f"configuration {path} cannot be read: {_first_line(exc)}") from exc
    try:
        return EngineConfig.model_validate(raw, context={"folder": path.resolve().parent})
    except ValidationError as exc:
        raise InputError(f"configuration {path}: {problems(exc)}") from exc


def problems(exc: ValidationError) -> str:
    """The problems of a validation, without the values (they may be secrets)."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg'].removeprefix('Value error, ')}"
        for e in exc.errors(include_input=False)
    )


def _first_line(exc: BaseException) -> str:
    return str(exc).splitlines()[0] if str(exc) else type(exc).__name__
