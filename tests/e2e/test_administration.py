# SPDX-License-Identifier: MIT
"""Jobs, schedules, limits and tokens made at the console: what one command makes the next one shows, after a rescan too."""

from __future__ import annotations

import pytest

from tests.e2e.harness import Lab

pytestmark = [pytest.mark.lab, pytest.mark.root]


def test_job_of_the_console_lives_beside_the_file_s(drill: Lab) -> None:
    made = drill.done("job", "create", "nightly", "--vm", "files-vm", "--mode", "nbd")
    assert made["schema"] == "vadplab.job-create/1"
    try:
        assert drill("job", "create", "nightly", "--vm", "files-vm").code == 2
        assert drill("job", "edit", "nightly", "--mode", "pigeon").error["code"] == "input.invalid"
        drill.done("job", "edit", "nightly", "--mode", "nbdssl")
        drill.done("job", "schedule", "nightly", "--cron", "0 2 * * *")
        drill.done("infra", "rescan")
        jobs = {job["name"]: job for job in drill.done("job", "list")["jobs"]}
        assert jobs["nightly"]["mode"] == "nbdssl" and jobs["nightly"]["vms"] == ["files-vm"]
        assert "demo" in jobs
        drill.done("job", "disable", "nightly")
        answer = drill("job", "run", "nightly")
        assert answer.code != 0 and answer.document["result"] == "failed"
    finally:
        drill.done("job", "delete", "nightly")
    assert "nightly" not in {job["name"] for job in drill.done("job", "list")["jobs"]}


def test_limit_of_a_server(drill: Lab) -> None:
    drill.done("infra", "limits", "set", "proxy-1", "3")
    try:
        servers = {server["name"]: server for server in drill.done("infra", "limits", "list")["servers"]}
        assert servers["proxy-1"]["max_tasks"] == 3
    finally:
        drill.done("infra", "limits", "clear", "proxy-1")


def test_token_is_shown_once(drill: Lab) -> None:
    token = drill.done("rest", "token", "create", "ci")["token"]
    try:
        listed = drill("rest", "token", "list")
        assert listed.code == 0 and token not in listed.stdout
        assert "ci" in {entry["name"] for entry in listed.document["tokens"]}
    finally:
        drill.done("rest", "token", "revoke", "ci")


@pytest.mark.parametrize(
    "argv", [("job", "create"), ("job", "schedule", "demo", "--zone"), ("infra", "limits", "set", "proxy-1", "many")]
)
def test_wrong_arguments_are_said_before_anything_is_asked(drill: Lab, argv: tuple[str, ...]) -> None:
    answer = drill(*argv)
    assert answer.code == 2
    assert answer.error["code"] == "input.arguments"
