# SPDX-License-Identifier: MIT
"""The configuration file of an engine process: defaults, relative paths, and clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import config as configuration
from engine.errors import InputError

GOOD = "name: proxy-1\nidentity: {certificate: a.pem, ca: /etc/ca.pem}\n"


def test_defaults_and_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GOOD + "repository: points\nevents: var/e.jsonl\n")
    found = configuration.load(tmp_path / "c.yaml")
    assert found.identity.certificate == tmp_path / "a.pem" and found.identity.ca == Path("/etc/ca.pem")
    assert found.repository == tmp_path / "points" and found.keylog is None
    assert found.mover_ports == (2500, 3300) and found.backup_server.port == 9392
    found.event_log("test").close()
    assert (tmp_path / "var" / "e.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "file"),
        ("name: [", "cannot be read"),
        (GOOD + "surprise: S3cret\n", "surprise"),
        (GOOD + "port: 70000\n", "port"),
        (GOOD + "mover_ports: [2500]\n", "mover_ports"),
        ("name: ''\nidentity: {certificate: a, ca: b}\n", "name"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        configuration.load(tmp_path / "c.yaml")
    assert said in caught.value.message and "S3cret" not in caught.value.message
    with pytest.raises(InputError):
        configuration.load(tmp_path / "none.yaml")
