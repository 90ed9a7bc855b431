# SPDX-License-Identifier: MIT
"""Where vcsim comes from: the order, and errors that name what is missing and how to get it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fakes.vcenter import source


def executable(path: Path, text: str = "#!/bin/sh\nexit 0\n") -> Path:
    """A file that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with nothing on it, and no Go in the environment."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(source.sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setattr(source.sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    return tmp_path


def no(image: str) -> bool:
    """No engine."""
    return False


def test_a_named_binary_comes_first(bare: Path) -> None:
    executable(bare / "bin" / "vcsim")
    named = executable(bare / "mine")
    found = source.locate(str(named), bare, has_image=no)
    assert (found.kind, found.executable) == ("binary", named)
    assert "named by the user" in found.describe()
    with pytest.raises(source.VcsimMissing, match="no executable file"):
        source.locate(str(bare / "none"), bare, has_image=no)


def test_a_path_that_somebody_found_before_is_called_what_it_is(bare: Path) -> None:
    """The lab finds vcsim and hands its path on."""
    built = executable(source.built_path(bare / "cache"))
    assert source.locate(str(built), bare / "cache", has_image=no).kind == "built"
    found = executable(bare / "bin" / "vcsim")
    assert source.locate(str(found), bare / "cache", has_image=no).kind == "path"


def test_path_before_docker_before_the_build(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source.os, "geteuid", lambda: 0)
    executable(source.built_path(bare / "cache"))
    assert source.locate(None, bare / "cache", has_image=no).kind == "built"
    assert source.locate(None, bare / "cache", has_image=lambda image: image == source.IMAGE).kind == "docker"
    monkeypatch.setattr(source.os, "geteuid", lambda: 1000)
    assert source.locate(None, bare / "cache", has_image=lambda image: True).kind == "built"
    executable(bare / "bin" / "vcsim")
    assert source.locate(None, bare / "cache", has_image=lambda image: True).kind == "path"
    assert source.locate("built", bare / "cache", has_image=no).kind == "built"


def test_what_is_missing_is_said_with_the_command(bare: Path) -> None:
    with pytest.raises(source.VcsimMissing, match=r"Go 1\.25 or newer is missing.*pip install"):
        source.locate("built", bare / "cache", has_image=no)
    with pytest.raises(source.VcsimMissing, match="docker pull"):
        source.locate("docker", bare, has_image=no)
    with pytest.raises(source.VcsimMissing, match="no vcsim on PATH"):
        source.locate("path", bare, has_image=no)
    with pytest.raises(source.VcsimMissing, match=r"--vcsim FILE.*docker pull.*pip install"):
        source.locate(None, bare / "cache", has_image=no)


def test_an_old_go_is_named_and_the_wheels_go_is_taken(bare: Path) -> None:
    executable(bare / "bin" / "go", "#!/bin/sh\necho go version go1.19.8 linux/amd64\n")
    with pytest.raises(source.VcsimMissing, match=r"bin/go is 1\.19"):
        source.find_go()
    wheel = executable(bare / "venv" / "bin" / "go", "#!/bin/sh\necho go version go1.27.3 linux/amd64\n")
    assert source.find_go() == wheel


def test_a_failing_build_says_why_and_leaves_nothing(bare: Path) -> None:
    script = "#!/bin/sh\nif [ $1 = version ]; then echo go version go1.27.3 x; else echo no network >&2; exit 1; fi\n"
    executable(bare / "bin" / "go", script)
    with pytest.raises(source.VcsimMissing, match="go build failed: no network"):
        source.build(bare / "cache")
    assert [p for p in (bare / "cache").rglob("*") if p.is_file()] == []


def test_a_build_is_kept(bare: Path) -> None:
    log = bare / "log"
    script = (
        f"#!/bin/sh\nif [ $1 = version ]; then echo go version go1.27.3 x; exit; fi\necho build >> {log}\n"
        'while [ "$1" != -o ]; do shift; done\necho made > "$2"\n/bin/chmod 755 "$2"\n'
    )
    executable(bare / "bin" / "go", script)
    first = source.build(bare / "cache")
    assert source.build(bare / "cache") == first
    assert log.read_text() == "build\n"
    assert source.module_hash() in str(first)


def test_the_module_pins_the_release() -> None:
    text = (source.MODULE / "go.mod").read_text()
    assert re.search(r"^go 1\.25\.0$", text, re.MULTILINE)
    assert "github.com/vmware/govmomi v0.56.0\n" in text
    assert "github.com/vmware/govmomi v0.56.0 h1:" in (source.MODULE / "go.sum").read_text()


def test_flags_of_the_stock_program(vcsim: source.VcsimSource) -> None:
    assert vcsim.executable is not None
    done = subprocess.run([vcsim.executable, "-h"], capture_output=True, text=True, timeout=30)
    offered = set(re.findall(r"^  -([\w-]+)", done.stderr, re.MULTILINE))
    wanted = {
        "l",
        "tls",
        "tlscert",
        "tlskey",
        "E",
        "esx",
        "api-version",
        "username",
        "password",
        "dc",
        "cluster",
        "host",
    }
    wanted |= {"standalone-host", "ds", "vm", "stdinexit", "load", "delay", "method-delay", "autostart", "pg", "pool"}
    assert wanted <= offered


def test_the_cache_is_where_the_user_says(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("VADPLAB_CACHE", str(tmp_path / "a"))
    assert source.default_cache() == tmp_path / "a"
    monkeypatch.delenv("VADPLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert source.default_cache() == tmp_path / "b" / "vadplab"
    assert os.environ.get("VADPLAB_CACHE") is None
