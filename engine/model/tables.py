# SPDX-License-Identifier: MIT
"""Tables of the configuration database. Columns named `sealed_…` hold encrypted secrets (`engine.model.secrets`)."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012


class VCenterRow(Base):
    """A vCenter server. `thumbprint` is the one given, or the first one seen by a rescan."""

    __tablename__ = "vcenters"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    address: Mapped[str]
    port: Mapped[int]
    thumbprint: Mapped[str | None]
    username: Mapped[str]
    sealed_password: Mapped[str]


class ServerRow(Base):
    """A machine with a Transport Service. `facts` is what its `hello` said at the last rescan; `problem` why it did not.

    `origin`: file (the infrastructure file, replaced by each rescan) or console (kept). `limit` replaces `max_tasks`.
    """

    __tablename__ = "servers"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    address: Mapped[str]
    port: Mapped[int]
    roles: Mapped[list[str]]
    max_tasks: Mapped[int]
    modes: Mapped[list[str]]
    origin: Mapped[str] = mapped_column(String(16), default="file")
    limit: Mapped[int | None]
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    problem: Mapped[str | None]


class CredentialsRow(Base):
    """An account in a guest; `kind` is password or private_key."""

    __tablename__ = "credentials"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    username: Mapped[str]
    kind: Mapped[str]
    sealed_secret: Mapped[str]


class GuestRow(Base):
    """How the guest of a VM is reached; `host_key` is pinned when known."""

    __tablename__ = "guests"
    vm: Mapped[str] = mapped_column(String(255), primary_key=True)
    credentials: Mapped[str] = mapped_column(ForeignKey("credentials.name"))
    host_key: Mapped[str | None]
    port: Mapped[int]


class VmRow(Base):
    """A VM as the last rescan saw it."""

    __tablename__ = "vms"
    id: Mapped[int] = mapped_column(primary_key=True)
    vcenter: Mapped[str] = mapped_column(ForeignKey("vcenters.name"))
    moref: Mapped[str]
    name: Mapped[str] = mapped_column(String(255), index=True)
    uuid: Mapped[str]
    host: Mapped[str]
    power: Mapped[str]
    disks: Mapped[list[DiskRow]] = relationship(cascade="all, delete-orphan", order_by="DiskRow.key", lazy="selectin")


class DiskRow(Base):
    """A VM's disk as the last rescan saw it; capacity in bytes."""

    __tablename__ = "disks"
    id: Mapped[int] = mapped_column(primary_key=True)
    vm_id: Mapped[int] = mapped_column(ForeignKey("vms.id"))
    key: Mapped[int]
    label: Mapped[str]
    path: Mapped[str]
    capacity: Mapped[int] = mapped_column(BigInteger)


class JobRow(Base):
    """A job: its settings as in the infrastructure file. `origin`: file (replaced by each rescan) or console (kept).

    `schedule` is a `engine.model.schedule.Schedule`; `considered` the UTC nanoseconds up to which it has been looked at.
    """

    __tablename__ = "jobs"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    settings: Mapped[dict[str, Any]]
    origin: Mapped[str] = mapped_column(String(16), default="file")
    enabled: Mapped[bool] = mapped_column(default=True)
    schedule: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    considered: Mapped[int | None] = mapped_column(BigInteger)


class SessionRow(Base):
    """A run of a job, a restore or a rescan. `state`: queued, running, ended. Times are UTC nanoseconds.

    `pending` is what has to be put right if the run dies: VMs that may carry its snapshot, guests that it froze.
    """

    __tablename__ = "sessions"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str]
    subject: Mapped[str]
    state: Mapped[str]
    result: Mapped[str | None]
    created: Mapped[int] = mapped_column(BigInteger)
    ended: Mapped[int | None] = mapped_column(BigInteger)
    pending: Mapped[dict[str, Any]] = mapped_column(default=dict)
    document: Mapped[dict[str, Any]] = mapped_column(default=dict)


class TokenRow(Base):
    """A token of the REST service: only its SHA-256 is kept. Times are UTC nanoseconds."""

    __tablename__ = "tokens"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[int] = mapped_column(BigInteger)
    expires: Mapped[int] = mapped_column(BigInteger)


class PlacementRow(Base):
    """Which repository keeps the points of a job's VM (the scheduler's affinity)."""

    __tablename__ = "placements"
    job: Mapped[str] = mapped_column(String(255), primary_key=True)
    vm: Mapped[str] = mapped_column(String(255), primary_key=True)
    repository: Mapped[str]
