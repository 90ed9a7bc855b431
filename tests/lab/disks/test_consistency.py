# SPDX-License-Identifier: MIT
"""The file system of a restored disk, held against what the restore point claims; on images made by e2fsprogs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lab.disks.consistency import Consistency, check

pytestmark = pytest.mark.skipif(shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None, reason="needs e2fsprogs")
MIB = 1 << 20
NEEDS_RECOVERY = 0x4
"""Incompatible feature bit EXT3_FEATURE_INCOMPAT_RECOVER (kernel, fs/ext4/ext4.h)."""


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    image = tmp_path / "clean.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    command = ["/usr/sbin/mkfs.ext4", "-q", "-F", "-O", "^metadata_csum", str(image)]
    subprocess.run(command, check=True, timeout=60)
    return image


@pytest.fixture
def crashed(clean: Path) -> Path:
    """The same with the flag that a mounted file system carries: its journal must be replayed."""
    with clean.open("r+b") as file:
        file.seek(1024 + 0x60)
        flags = int.from_bytes(file.read(4), "little") | NEEDS_RECOVERY
        file.seek(1024 + 0x60)
        file.write(flags.to_bytes(4, "little"))
    return clean


@pytest.mark.parametrize("claimed", [None, "file-system", "application", "crash"])
def test_a_flushed_file_system_meets_every_claim(clean: Path, claimed: str | None) -> None:
    found = check(clean, claimed=claimed)
    assert found.filesystem == "file-system-consistent" and found.sound, found
    assert found.to_dict()["claimed"] == claimed


@pytest.mark.parametrize(
    ("claimed", "sound"), [("crash", True), (None, True), ("file-system", False), ("application", False)]
)
def test_a_journal_to_replay_breaks_a_claim_of_a_frozen_file_system(
    crashed: Path, claimed: str | None, sound: bool
) -> None:
    before = crashed.read_bytes()
    found = check(crashed, claimed=claimed)
    assert found.filesystem == "crash-consistent"
    assert found.sound is sound, found.problems
    assert not sound or not found.problems
    assert sound or "the journal had to be replayed" in found.problems[0]
    assert crashed.read_bytes() == before, "a check writes nothing"


def test_a_guests_disk_without_its_ledger_is_a_failure(clean: Path) -> None:
    found = check(clean, claimed="file-system", needs_ledger=True)
    assert not found.sound and "no ledger" in found.problems[0]


def test_a_broken_ledger_is_a_failure() -> None:
    assert Consistency("file-system-consistent", ledger={"ok": False}).problems == ["the ledger is broken"]


def test_no_file_system_is_not_sound(tmp_path: Path) -> None:
    image = tmp_path / "zeros"
    image.write_bytes(bytes(MIB))
    found = check(image)
    assert found.filesystem == "none" and not found.sound


def test_a_damaged_file_system_is_not_sound(clean: Path) -> None:
    with clean.open("r+b") as file:
        file.seek(2 * 1024 + 4096 * 2)
        file.write(b"\xff" * 200_000)
    assert not check(clean).sound
