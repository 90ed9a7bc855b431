# SPDX-License-Identifier: MIT
"""Folders of labs: names, selection, lock, state file, purge."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine.errors import InputError
from lab.errors import LabAmbiguous, LabNotRunning, LabRunning, LabUnknown
from lab.realise import folders


def test_home_follows_the_environment() -> None:
    assert folders.home({"VADPLAB_HOME": "/a", "XDG_STATE_HOME": "/b"}) == Path("/a")
    assert folders.home({"XDG_STATE_HOME": "/b"}) == Path("/b/vadplab")
    assert folders.home({}) == Path.home() / ".local/state/vadplab"


@pytest.mark.parametrize("name", ["", "Lab", "a/b", "..", "-a", "a" * 33, "a b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="no name for a lab"):
        folders.folder(name)


def test_layout(tmp_path: Path) -> None:
    lab = folders.folder("one", tmp_path)
    lab.make(["console"])
    assert lab.path == tmp_path / "labs" / "one"
    assert lab.log("console", "x") == lab.path / "hosts/console/log/x.log"
    assert lab.log(None, "storage-ds") == lab.path / "hosts/fabric/log/storage-ds.log"
    assert {path.name for path in lab.host("console").iterdir()} == {"etc", "var", "log"}


def test_lock_and_running(tmp_path: Path) -> None:
    lab = folders.folder("one", tmp_path)
    assert not lab.running()
    fd = lab.lock()
    assert lab.running()
    with pytest.raises(LabRunning):
        lab.lock()
    with pytest.raises(LabRunning):
        lab.purge()
    os.close(fd)
    assert not lab.running()
    lab.purge()
    assert not lab.path.exists()


def test_state_file(tmp_path: Path) -> None:
    lab = folders.folder("one", tmp_path)
    assert lab.state() == {}
    lab.path.mkdir(parents=True)
    lab.write_state(phase="starting", a=1)
    lab.write_state(phase="up")
    assert lab.state() == {"schema": "vadplab.state/1", "name": "one", "phase": "up", "a": 1}
    assert [path.name for path in lab.path.iterdir()] == ["state.json"]
    lab.state_file.write_text("{half")
    assert lab.state() == {}
    lab.state_file.write_text(json.dumps([1]))
    assert lab.state() == {}


def test_selection(tmp_path: Path) -> None:
    with pytest.raises(LabUnknown):
        folders.select(None, running=False, root=tmp_path)
    with pytest.raises(LabNotRunning):
        folders.select(None, running=True, root=tmp_path)
    one, two = folders.folder("one", tmp_path), folders.folder("two", tmp_path)
    one.make([])
    assert folders.select(None, running=False, root=tmp_path) == one
    with pytest.raises(LabNotRunning):
        folders.select(None, running=True, root=tmp_path)
    two.make([])
    with pytest.raises(LabAmbiguous, match="there are 2 labs: one, two"):
        folders.select(None, running=False, root=tmp_path)
    fd = two.lock()
    assert folders.select(None, running=True, root=tmp_path) == two
    assert folders.select(None, running=False, root=tmp_path) == two
    assert folders.select("one", running=False, root=tmp_path) == one
    with pytest.raises(LabNotRunning, match="the lab one is not running"):
        folders.select("one", running=True, root=tmp_path)
    with pytest.raises(LabUnknown, match="there is no lab three"):
        folders.select("three", running=False, root=tmp_path)
    other = one.lock()
    with pytest.raises(LabAmbiguous):
        folders.select(None, running=True, root=tmp_path)
    os.close(fd)
    os.close(other)
    assert folders.existing(tmp_path) == [one, two]
