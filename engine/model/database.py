# SPDX-License-Identifier: MIT
"""The configuration database: SQLAlchemy over SQLite or PostgreSQL. Blocking; the Backup Service calls it in threads.

What it gives and takes are plain values, so that no database object leaves a thread. `job_book`, `server_book` and
`tokens` are its parts that consoles change; what a rescan and runs store is here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from engine.dialer import Dialer
from engine.errors import InputError, MissingError
from engine.model import migrate
from engine.model.connect import DatabaseFailed, Place, Sessions, engine_for, place
from engine.model.infrastructure import Infrastructure, Job
from engine.model.jobs import JobBook, JobUnknown, replace_file_jobs
from engine.model.secrets import SecretBox
from engine.model.servers import ServerBook, replace_file_servers
from engine.model.tables import (
    CredentialsRow,
    DiskRow,
    GuestRow,
    PlacementRow,
    ServerRow,
    SessionRow,
    VCenterRow,
    VmRow,
)
from engine.model.tokens import Tokens
from engine.vsphere import VmInfo

__all__ = ["Database", "DatabaseFailed", "JobUnknown", "NothingKnown"]


_SESSION = ("id", "kind", "subject", "state", "result", "created", "ended", "pending", "document")


class NothingKnown(MissingError):
    """The configuration database knows no inventory yet."""

    code = "infra.empty"
    advice = "Run `infra rescan` first."


class Database:
    """The configuration database at `where`, with secrets sealed by `box`.

    It is brought to the newest revision when it is opened. `dialer` opens the connections to a server; with `step` there is
    one connection, which that step opens.

    Raises:
        DatabaseFailed, DatabaseUrl. ConnectError: its server is not reached.
    """

    def __init__(
        self,
        where: str | Place,
        box: SecretBox,
        *,
        dialer: Dialer | None = None,
        step: str | None = None,
        migrated: bool = False,
    ) -> None:
        self._box = box
        self.where = place(where) if isinstance(where, str) else where
        if not migrated:
            migrate.upgrade(self.where, dialer)
        self._sessions = Sessions(engine_for(self.where, dialer, step=step, single=step is not None), self.where)
        self.job_book = JobBook(self._sessions)
        self.server_book = ServerBook(self._sessions)
        self.tokens = Tokens(self._sessions)

    def close(self) -> None:
        """Closes all connections."""
        self._sessions.engine.dispose()

    @contextmanager
    def for_step(self, step: str, dialer: Dialer) -> Iterator[Database]:
        """The same database over a new connection that `step` opens; a SQLite file has no connections and is itself."""
        if self.where.is_sqlite:
            yield self
            return
        database = Database(self.where, self._box, dialer=dialer, step=step, migrated=True)
        try:
            yield database
        finally:
            database.close()

    # Infrastructure

    def store_infrastructure(self, infrastructure: Infrastructure) -> None:
        """Replaces what the administrator configured; inventory, facts and seen thumbprints of kept entries stay."""
        with self._sessions.begin() as session:
            seen = {row.name: row.thumbprint for row in session.scalars(select(VCenterRow))}
            keys = {row.vm: row.host_key for row in session.scalars(select(GuestRow))}
            known = {v.name for v in infrastructure.vcenters}
            for vm in session.scalars(select(VmRow)):
                if vm.vcenter not in known:
                    session.delete(vm)
            session.flush()
            for table in (GuestRow, CredentialsRow):
                session.execute(delete(table))
            for row in session.scalars(select(VCenterRow)):
                if row.name not in known:
                    session.delete(row)
            for v in infrastructure.vcenters:
                session.merge(
                    VCenterRow(
                        name=v.name,
                        address=v.address,
                        port=v.port,
                        thumbprint=v.thumbprint or seen.get(v.name),
                        username=v.username,
                        sealed_password=self._box.seal(v.password.get_secret_value()),
                    )
                )
            replace_file_servers(session, infrastructure.servers)
            for c in infrastructure.credentials:
                session.add(self._credentials(c.name, c.username, c.password, c.private_key))
            session.flush()
            for g in infrastructure.guests:
                session.add(
                    GuestRow(vm=g.vm, credentials=g.credentials, host_key=g.host_key or keys.get(g.vm), port=g.port)
                )
            replace_file_jobs(session, infrastructure.jobs)

    def store_inventory(self, vcenter: str, thumbprint: str | None, vms: list[VmInfo]) -> None:
        """Replaces the inventory of one vCenter; `thumbprint` is kept when none is stored yet."""
        with self._sessions.begin() as session:
            row = session.get(VCenterRow, vcenter)
            if row is not None and row.thumbprint is None:
                row.thumbprint = thumbprint
            for old in session.scalars(select(VmRow).where(VmRow.vcenter == vcenter)):
                session.delete(old)
            session.flush()
            for vm in vms:
                disks = [DiskRow(key=d.key, label=d.label, path=d.path, capacity=d.capacity) for d in vm.disks]
                session.add(
                    VmRow(
                        vcenter=vcenter,
                        moref=vm.moref,
                        name=vm.name,
                        uuid=vm.uuid,
                        host=vm.host,
                        power="on" if vm.powered_on else "off",
                        disks=disks,
                    )
                )

    def store_facts(self, server: str, facts: dict[str, Any], problem: str | None) -> None:
        """What a Transport Service said about itself, or why it did not."""
        with self._sessions.begin() as session:
            row = session.get(ServerRow, server)
            if row is not None:
                row.facts = facts or row.facts
                row.problem = problem

    def pin_host_key(self, vm: str, host_key: str) -> None:
        """Remembers the SSH host key first seen in a guest, unless one is stored."""
        with self._sessions.begin() as session:
            row = session.get(GuestRow, vm)
            if row is not None and row.host_key is None:
                row.host_key = host_key

    def vcenters(self) -> list[dict[str, Any]]:
        """Every vCenter with its password: name, address, port, thumbprint, username, password."""
        with self._sessions.read() as session:
            return [self._vcenter(row) for row in session.scalars(select(VCenterRow).order_by(VCenterRow.name))]

    def servers(self) -> list[dict[str, Any]]:
        """Every server (`ServerBook.entries`)."""
        return self.server_book.entries()

    def show(self) -> dict[str, Any]:
        """Everything without secrets, for `infra show`."""
        with self._sessions.read() as session:
            vcenters = [
                {
                    "name": r.name,
                    "address": r.address,
                    "port": r.port,
                    "thumbprint": r.thumbprint,
                    "username": r.username,
                }
                for r in session.scalars(select(VCenterRow).order_by(VCenterRow.name))
            ]
            vms = [self._vm(row) for row in session.scalars(select(VmRow).order_by(VmRow.name))]
            guests = [
                {"vm": r.vm, "credentials": r.credentials, "host_key": r.host_key, "port": r.port}
                for r in session.scalars(select(GuestRow).order_by(GuestRow.vm))
            ]
        return {"vcenters": vcenters, "servers": self.servers(), "vms": vms, "guests": guests}

    # Jobs

    def jobs(self) -> list[dict[str, Any]]:
        """Every job (`JobBook.entries`)."""
        return self.job_book.entries()

    def job(self, name: str) -> Job:
        """A job's settings. Raises JobUnknown."""
        return self.job_book.get(name)

    def job_inputs(self, name: str) -> dict[str, Any]:
        """What a Backup Manager needs for a run: `{job, vcenter, servers, vms, guests}`, with secrets. Raises JobUnknown, NothingKnown."""
        job, servers = self.job(name), self.servers()  # one after the other: a step's connection is one
        with self._sessions.read() as session:
            vcenter = (
                session.get(VCenterRow, job.vcenter)
                if job.vcenter
                else session.scalars(select(VCenterRow).order_by(VCenterRow.name)).first()
            )
            if vcenter is None:
                raise NothingKnown(f"job {name}: its vCenter is not in the configuration database")
            rows = list(session.scalars(select(VmRow).where(VmRow.vcenter == vcenter.name)))
            if not rows:
                raise NothingKnown(f"job {name}: nothing is known about {vcenter.name}'s inventory")
            by_name = {row.name: self._vm(row) for row in rows}
            return {
                "job": job.model_dump(mode="json"),
                "vcenter": self._vcenter(vcenter),
                "servers": servers,
                "vms": [by_name.get(vm, {"name": vm, "missing": True, "disks": []}) for vm in job.vms],
                "guests": self._guests(session, job.vms),
            }

    def guests(self, vms: list[str]) -> dict[str, dict[str, Any]]:
        """Accounts of guests, with secrets, by VM."""
        with self._sessions.read() as session:
            return self._guests(session, vms)

    def placements(self, job: str) -> dict[str, str]:
        """VM → repository of its last restore point."""
        with self._sessions.read() as session:
            rows = session.scalars(select(PlacementRow).where(PlacementRow.job == job))
            return {row.vm: row.repository for row in rows}

    def keeps_points(self, server: str) -> bool:
        """Whether a restore point of any VM went to that server."""
        with self._sessions.read() as session:
            return session.scalars(select(PlacementRow).where(PlacementRow.repository == server)).first() is not None

    def place(self, job: str, vm: str, repository: str) -> None:
        """Remembers where a VM's restore point went."""
        with self._sessions.begin() as session:
            session.merge(PlacementRow(job=job, vm=vm, repository=repository))

    # Sessions

    def begin_session(self, session_id: str, kind: str, subject: str, state: str = "running") -> None:
        """A run begins. Raises InputError when the id is in use."""
        with self._sessions.begin() as session:
            if session.get(SessionRow, session_id) is not None:
                raise InputError(f"a session with the id {session_id} exists")
            session.add(
                SessionRow(
                    id=session_id,
                    kind=kind,
                    subject=subject,
                    state=state,
                    created=time.time_ns(),
                    pending={},
                    document={},
                )
            )

    def set_state(self, session_id: str, state: str) -> None:
        """queued → running."""
        with self._sessions.begin() as session:
            row = session.get(SessionRow, session_id)
            if row is not None:
                row.state = state

    def set_pending(self, session_id: str, pending: dict[str, Any]) -> None:
        """What has to be put right if the run dies now; empty when nothing."""
        with self._sessions.begin() as session:
            row = session.get(SessionRow, session_id)
            if row is not None:
                row.pending = pending

    def end_session(self, session_id: str, result: str, document: dict[str, Any]) -> None:
        """A run has ended."""
        with self._sessions.begin() as session:
            row = session.get(SessionRow, session_id)
            if row is not None:
                row.state, row.result, row.ended, row.document = "ended", result, time.time_ns(), document

    def sessions(self, *, subject: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """Runs, newest first."""
        query = select(SessionRow).order_by(SessionRow.created.desc())
        if subject is not None:
            query = query.where(SessionRow.subject == subject)
        if kind is not None:
            query = query.where(SessionRow.kind == kind)
        with self._sessions.read() as session:
            return [{k: getattr(row, k) for k in _SESSION} for row in session.scalars(query)]

    def session(self, session_id: str) -> dict[str, Any] | None:
        """One run; None when there is none of that id."""
        with self._sessions.read() as session:
            row = session.get(SessionRow, session_id)
            return None if row is None else {k: getattr(row, k) for k in _SESSION}

    def unfinished(self) -> list[dict[str, Any]]:
        """Runs that did not end by themselves, or left something pending."""
        return [s for s in self.sessions() if s["state"] != "ended" or s["pending"]]

    # Inside

    def _credentials(self, name: str, username: str, password: Any, private_key: Path | None) -> CredentialsRow:
        if password is not None:
            kind, secret = "password", password.get_secret_value()
        else:
            assert private_key is not None
            try:
                kind, secret = "private_key", private_key.read_text()
            except (OSError, UnicodeDecodeError) as exc:
                raise InputError(f"credentials {name}: private key {private_key} cannot be read") from exc
        return CredentialsRow(name=name, username=username, kind=kind, sealed_secret=self._box.seal(secret))

    def _vcenter(self, row: VCenterRow) -> dict[str, Any]:
        return {
            "name": row.name,
            "address": row.address,
            "port": row.port,
            "thumbprint": row.thumbprint,
            "username": row.username,
            "password": self._box.open(row.sealed_password),
        }

    def _guests(self, session: Session, vms: list[str]) -> dict[str, dict[str, Any]]:
        found = {}
        for row in session.scalars(select(GuestRow).where(GuestRow.vm.in_(vms))):
            account = session.get(CredentialsRow, row.credentials)
            if account is not None:
                found[row.vm] = {
                    "username": account.username,
                    account.kind: self._box.open(account.sealed_secret),
                    "host_key": row.host_key,
                    "port": row.port,
                }
        return found

    @staticmethod
    def _vm(row: VmRow) -> dict[str, Any]:
        disks = [{"key": d.key, "label": d.label, "path": d.path, "capacity": d.capacity} for d in row.disks]
        return {
            "name": row.name, "vcenter": row.vcenter, "moref": row.moref, "uuid": row.uuid, "host": row.host, "power": row.power,
            "disks": disks,
        }  # fmt: skip
