# SPDX-License-Identifier: MIT
"""The configuration database: what a rescan stores comes back, secrets are sealed, and unfinished runs are found."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.errors import InputError
from engine.model import infrastructure
from engine.model.connect import DatabaseUrl
from engine.model.database import Database, DatabaseFailed, JobUnknown, NothingKnown
from engine.model.jobs import VmUnknown
from engine.model.secrets import SecretBox, SecretsUnreadable
from engine.vsphere import Disk, GuestInfo, VmInfo

SECRET = "S3cret-of-the-vCenter"
DOCUMENT: dict[str, Any] = {
    "vcenters": [{"name": "vcenter", "username": "u", "password": SECRET}],
    "servers": [
        {"name": "proxy-1", "roles": ["proxy"]},
        {"name": "repository-1", "roles": ["repository"], "max_tasks": 4},
    ],
    "credentials": [{"name": "root", "username": "root", "password": "S3cret-of-the-guest"}],
    "guests": [{"vm": "linux-vm", "credentials": "root"}],
    "jobs": [{"name": "demo", "vms": ["linux-vm", "gone-vm"]}],
}
VM = VmInfo(
    "vm-1", "linux-vm", "uuid", "[ds] l/l.vmx", True, "esxi-1",
    (Disk(2000, "Hard disk 1", "[ds] l/l.vmdk", 5 << 40),), GuestInfo(True, "linuxGuest", "l", "10.0.0.9"),
)  # fmt: skip


def load(folder: Path, **changes: Any) -> infrastructure.Infrastructure:
    path = folder / "infrastructure.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT | changes))
    return infrastructure.load(path)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path}/var/db.sqlite", SecretBox(tmp_path / "key"))


def test_rescan_and_inputs_of_a_job(database: Database, tmp_path: Path) -> None:
    database.store_infrastructure(load(tmp_path))
    with pytest.raises(NothingKnown):
        database.job_inputs("demo")
    database.store_inventory("vcenter", "ab" * 32, [VM])
    found = database.job_inputs("demo")
    assert found["vcenter"]["password"] == SECRET and found["vcenter"]["thumbprint"] == "ab" * 32
    assert found["vms"][0]["disks"] == [
        {"key": 2000, "label": "Hard disk 1", "path": "[ds] l/l.vmdk", "capacity": 5 << 40}
    ]
    assert found["vms"][1] == {"name": "gone-vm", "missing": True, "disks": []}
    assert found["guests"]["linux-vm"]["password"] == "S3cret-of-the-guest"
    assert found["job"]["guest"]["enabled"] is False and Path(found["job"]["guest"]["pre_freeze"]).exists()
    with pytest.raises(JobUnknown):
        database.job("other")


def test_a_job_takes_only_vms_that_the_inventory_has_once_it_is_known(database: Database, tmp_path: Path) -> None:
    database.store_infrastructure(load(tmp_path))
    database.job_book.create({"name": "early", "vms": ["not-read-yet"]})
    database.store_inventory("vcenter", None, [VM])
    with pytest.raises(VmUnknown, match="vcenter has no VM typo"):
        database.job_book.create({"name": "late", "vms": ["linux-vm", "typo"]})
    with pytest.raises(VmUnknown, match="typo"):
        database.job_book.edit("demo", {"vms": ["linux-vm", "typo"]})
    assert [job["name"] for job in database.jobs()] == ["demo", "early"]
    assert database.job_book.show("demo")["vms"] == ["linux-vm", "gone-vm"]
    database.job_book.create({"name": "late", "vms": ["linux-vm"]})
    edited = database.job_book.edit("demo", {"vms": ["gone-vm"], "mode": "nbd"})
    assert edited["vms"] == ["gone-vm"], "a VM that left vCenter does not keep its job from being changed"


def test_second_rescan_keeps_what_was_learned(database: Database, tmp_path: Path) -> None:
    database.store_infrastructure(load(tmp_path))
    database.store_inventory("vcenter", "ab" * 32, [VM])
    database.store_facts("proxy-1", {"version": "1"}, None)
    database.pin_host_key("linux-vm", "ssh-ed25519 A")
    database.pin_host_key("linux-vm", "ssh-ed25519 B")
    database.store_infrastructure(load(tmp_path, jobs=[]))
    shown = database.show()
    assert shown["vcenters"][0]["thumbprint"] == "ab" * 32
    assert shown["servers"][0]["facts"] == {"version": "1"}
    assert shown["guests"][0]["host_key"] == "ssh-ed25519 A" and shown["vms"][0]["power"] == "on"
    assert database.jobs() == []
    database.store_infrastructure(load(tmp_path, vcenters=[{"name": "other", "username": "u", "password": "p"}]))
    assert database.show()["vms"] == []


def test_secrets_are_sealed_and_private(database: Database, tmp_path: Path) -> None:
    database.store_infrastructure(load(tmp_path))
    stored = b"".join(p.read_bytes() for p in (tmp_path / "var").iterdir())
    assert b"S3cret" not in stored and b"proxy-1" in stored
    assert "S3cret" not in str(database.show()) + repr(load(tmp_path))
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    (tmp_path / "other").mkdir()
    other = Database(f"sqlite:///{tmp_path}/var/db.sqlite", SecretBox(tmp_path / "other" / "key"))
    with pytest.raises(SecretsUnreadable):
        other.vcenters()
    (tmp_path / "bad").write_text("not a key")
    with pytest.raises(SecretsUnreadable):
        SecretBox(tmp_path / "bad")
    with pytest.raises(DatabaseUrl):
        Database("nonsense://", SecretBox(tmp_path / "key"))
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseFailed):
        Database(f"sqlite:///{tmp_path}/file/db.sqlite", SecretBox(tmp_path / "key"))


def test_sessions_and_what_is_unfinished(database: Database) -> None:
    database.begin_session("s1", "job", "demo", "queued")
    with pytest.raises(InputError):
        database.begin_session("s1", "job", "demo")
    database.set_state("s1", "running")
    database.set_pending("s1", {"linux-vm": {"snapshot": True}})
    database.begin_session("s2", "job", "demo")
    database.end_session("s2", "success", {"result": "success"})
    assert [s["id"] for s in database.unfinished()] == ["s1"]
    database.end_session("s1", "failed", {})
    assert [s["id"] for s in database.unfinished()] == ["s1"]
    database.set_pending("s1", {})
    assert database.unfinished() == []
    assert [s["id"] for s in database.sessions(subject="demo", kind="job")] == ["s2", "s1"]
    database.place("demo", "linux-vm", "repository-1")
    database.place("demo", "linux-vm", "repository-2")
    assert database.placements("demo") == {"linux-vm": "repository-2"}
    assert database.keeps_points("repository-2") and not database.keeps_points("repository-1")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"servers": DOCUMENT["servers"][:1] * 2}, "same name"),
        ({"servers": [{"name": n, "roles": ["proxy"]} for n in "ab"]}, "role repository"),
        ({"guests": [{"vm": "x", "credentials": "nobody"}]}, "unknown credentials nobody"),
        ({"jobs": [{"name": "j", "vms": ["a"], "vcenter": "other"}]}, "unknown vCenter other"),
        ({"jobs": [{"name": "j", "vms": []}]}, "jobs.0.vms"),
        ({"jobs": [{"name": "j", "vms": ["a"], "mode": "pigeon"}]}, "jobs.0.mode"),
        ({"jobs": [{"name": "../j", "vms": ["a"]}]}, "jobs.0.name"),
        ({"vcenters": [{"name": "v", "username": "u", "password": ["S3cret"]}]}, "vcenters.0.password"),
        ({"credentials": [{"name": "c", "username": "u"}]}, "password or private_key"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_bad_infrastructure_names_the_field_not_the_value(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, **changes)
    assert text in caught.value.message and "S3cret" not in caught.value.message


def test_unreadable_infrastructure(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        infrastructure.load(tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_text("password: S3cret: {")
    with pytest.raises(InputError) as caught:
        infrastructure.load(tmp_path / "x.yaml")
    assert "not YAML at line 1" in caught.value.message and "S3cret" not in caught.value.message
