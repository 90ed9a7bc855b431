# SPDX-License-Identifier: MIT
"""What people read of the console's documents, and what is said of arguments that the console does not know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.cli import main
from lab.cli.administration import rows


def test_what_lies_deeper_has_rows_of_its_own() -> None:
    job = {
        "name": "demo",
        "vms": ["a", "b"],
        "guest": {"enabled": False, "user": None},
        "created": 1_700_000_000 * 10**9,
    }
    assert list(rows(job)) == [
        ("name", "demo"),
        ("vms", "a, b"),
        ("guest.enabled", "no"),
        ("guest.user", ""),
        ("created", "2023-11-14T22:13:20+00:00"),
    ]


def test_usage_is_that_of_this_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "create", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: vadplab job create [-h] --vm VMS")


@pytest.mark.parametrize(
    ("argv", "complaint", "usage"),
    [
        (["infra", "limits"], "the following arguments are required: verb", "`vadplab infra limits --help`"),
        (["rest", "token", "foo"], "argument verb: invalid choice: 'foo'", "`vadplab rest token --help`"),
        (["job", "enable"], "the following arguments are required: name", "`vadplab job enable --help`"),
    ],
)
def test_wrong_arguments_name_the_command_that_shows_usage(
    argv: list[str],
    complaint: str,
    usage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VADPLAB_HOME", str(tmp_path))
    assert main([*argv, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert error["code"] == "input.arguments"
    assert error["message"].startswith(complaint)
    assert usage in error["next"]
