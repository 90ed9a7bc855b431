# SPDX-License-Identifier: MIT
"""Verbs that change the configuration, through the console and a real service process: results, survival, clear errors."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.console.__main__ import main
from engine.console.administration import merge, nested
from tests.engine.console.test_processes import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        made.start("engine.service", "backup-server")
        made.console("infra", "rescan")  # nothing else runs: the file is read all the same
        yield made
    finally:
        made.close()


def console(site: Site, *command: str) -> tuple[int, list[dict[str, Any]]]:
    """One command of the console, in this process: the service is another one."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["--config", str(site.paths["console"]), "--events", *command])
    return code, [json.loads(line) for line in out.getvalue().splitlines()]


def done(site: Site, *command: str) -> dict[str, Any]:
    code, documents = console(site, *command)
    assert code == 0 and documents[-1].get("error") is None, documents[-1]
    return documents[-1]


def refused(site: Site, *command: str) -> tuple[int, str, str]:
    code, documents = console(site, *command)
    error = documents[-1]["error"]
    assert error["next"]
    return code, error["code"], error["message"]


def names(site: Site) -> dict[str, str]:
    return {job["name"]: job["origin"] for job in done(site, "job", "list")["jobs"]}


@pytest.mark.parametrize("option", ["--data-direction", "--direction"])
def test_direction_has_one_name_and_its_earlier_one(
    site: Site, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = done(site, "job", "create", f"turned{option}", "--vm", "a", option, "repository-to-proxy")["job"]
    assert made["direction"] == "repository-to-proxy"
    done(site, "job", "delete", f"turned{option}")
    with pytest.raises(SystemExit):
        console(site, "job", "create", "--help")
    assert " --direction" not in capsys.readouterr().out


def test_jobs_of_the_console_survive_a_rescan_and_the_file_keeps_its_own(site: Site) -> None:
    made = done(site, "job", "create", "nightly", "--vm", "a", "--vm", "b", "--mode", "nbd", "--throttle", "1000000",
                "--set", "rules.workers=4", "--no-guest-processing")  # fmt: skip
    assert made["schema"] == "vadplab.job-changed/1"
    job = made["job"]
    assert (job["vms"], job["mode"], job["origin"], job["enabled"]) == (["a", "b"], "nbd", "console", True)
    assert job["rules"]["throttle"] == 1_000_000 and job["rules"]["workers"] == 4
    edited = done(site, "job", "edit", "demo", "--set", "rules.workers=3")["job"]
    assert edited["origin"] == "console" and edited["vms"] == ["linux-vm"] and edited["rules"]["workers"] == 3
    console(site, "infra", "rescan")
    assert names(site) == {"nightly": "console", "demo": "console"}
    assert done(site, "job", "show", "demo")["job"]["rules"]["workers"] == 3
    assert done(site, "job", "delete", "demo") == {"schema": "vadplab.job-deleted/1", "name": "demo", "deleted": True}
    assert names(site) == {"nightly": "console"}
    console(site, "infra", "rescan")  # the name is the file's again
    assert names(site) == {"nightly": "console", "demo": "file"}
    assert refused(site, "job", "delete", "demo")[:2] == (2, "job.of-the-file")
    done(site, "job", "delete", "nightly")


def test_a_switched_off_job_does_not_start(site: Site) -> None:
    assert done(site, "job", "disable", "demo")["job"]["enabled"] is False
    console(site, "infra", "rescan")
    assert refused(site, "job", "run", "demo")[:2] == (2, "job.disabled")
    assert done(site, "job", "enable", "demo")["job"]["enabled"] is True


def test_schedules(site: Site) -> None:
    given = done(site, "job", "schedule", "demo", "--cron", "30 22 * * 1-5", "--zone", "Europe/Berlin")["job"]
    assert given["schedule"] == {"cron": "30 22 * * 1-5", "zone": "Europe/Berlin", "missed": "skip"}
    assert len(given["next_runs"]) == 3 and given["next_runs"] == sorted(given["next_runs"])
    assert given["origin"] == "file", "a schedule does not make it the console's"
    console(site, "infra", "rescan")
    shown = done(site, "job", "schedule", "demo")
    assert shown["schema"] == "vadplab.job-schedule/1" and shown["job"]["next_runs"] == given["next_runs"]
    assert done(site, "job", "schedule", "demo", "--off")["job"]["schedule"] is None


def test_servers_and_limits(site: Site) -> None:
    added = done(
        site, "infra", "proxies", "add", "proxy-9", "--address", "127.0.0.99", "--tasks", "7", "--modes", "nbd"
    )
    assert (added["server"]["max_tasks"], added["server"]["modes"], added["server"]["origin"]) == (
        7,
        ["nbd"],
        "console",
    )
    limited = done(site, "infra", "limits", "set", "proxy-1", "1")["server"]
    assert (limited["max_tasks"], limited["limit"], limited["origin"]) == (1, 1, "file")
    console(site, "infra", "rescan")
    listed = {s["name"]: s for s in done(site, "infra", "proxies", "list")["servers"]}
    assert listed["proxy-9"]["max_tasks"] == 7 and listed["proxy-1"]["max_tasks"] == 1
    assert done(site, "infra", "limits", "clear", "proxy-1")["server"]["max_tasks"] == 2
    assert {s["name"] for s in done(site, "infra", "repositories", "list")["servers"]} == {"repository-1"}
    edited = done(site, "infra", "proxies", "edit", "proxy-9", "--port", "7000")["server"]
    assert (edited["port"], edited["address"]) == (7000, "127.0.0.99")
    done(site, "infra", "proxies", "remove", "proxy-9")
    assert {s["name"] for s in done(site, "infra", "limits", "list")["servers"]} == {"proxy-1", "repository-1"}


def test_tokens(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "token"
    made = done(site, "rest", "token", "create", "script", "--hours", "2", "--to", str(file))
    assert "token" not in made and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().startswith("vadplab_") and made["expires"] - made["created"] == 2 * 3600 * 10**9
    assert done(site, "rest", "token", "create", "shown")["token"].startswith("vadplab_")
    listed = done(site, "rest", "token", "list")["tokens"]
    assert [t["name"] for t in listed] == ["script", "shown"] and "vadplab_" not in json.dumps(listed)
    for name in ("script", "shown"):
        done(site, "rest", "token", "revoke", name)
    assert refused(site, "rest", "token", "create", "x", "--to", str(file))[:2] == (2, "token.file")
    assert refused(site, "rest", "token", "create", "a b", "--to", str(tmp_path / "new"))[1] == "input.invalid"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("job create demo --vm a", "job.exists", "demo"),
        ("job create bad/name --vm a", "input.invalid", "name"),
        ("job create j --vm a --vm a", "input.invalid", "twice"),
        ("job create j --vm a --mode pigeon", "input.invalid", "mode"),
        ("job create j --vm a --vcenter nowhere", "input.invalid", "nowhere"),
        ("job create j --vm a --set colour=red", "input.invalid", "colour"),
        ("job create j --vm a --set rules", "input.invalid", "FIELD=VALUE"),
        ("job create j --vm a --set rules.workers=[", "input.invalid", "YAML"),
        ("job create j --vm a --guest-processing --pre-freeze /none", "input.invalid", "/none"),
        ("job create j --vm a --throttle 5", "input.invalid", "throttle"),
        ("job edit demo", "input.invalid", "nothing"),
        ("job edit demo --set name=other", "input.invalid", "name"),
        ("job edit nothing --vm a", "job.unknown", "nothing"),
        ("job delete nothing", "job.unknown", "nothing"),
        ("job enable nothing", "job.unknown", "nothing"),
        ("job schedule demo --zone UTC", "input.invalid", "--cron"),
        ("job schedule demo --cron x", "input.invalid", "five fields"),
        ("job schedule demo --cron '61 * * * *'", "input.invalid", "cron"),
        ("job schedule demo --cron '0 0 31 2 *'", "input.invalid", "day-of-month"),
        ("job schedule demo --cron '* * * * *' --zone Mars/Base", "input.invalid", "zone"),
        ("infra proxies add proxy-1", "server.exists", "proxy-1"),
        ("infra proxies add p --tasks 0", "input.invalid", "max_tasks"),
        ("infra proxies add p --modes pigeon", "input.invalid", "modes"),
        ("infra proxies edit nothing --port 1", "server.unknown", "nothing"),
        ("infra proxies edit proxy-1", "input.invalid", "nothing"),
        ("infra proxies remove proxy-1", "server.of-the-file", "proxy-1"),
        ("infra repositories remove proxy-1", "server.unknown", "repository"),
        ("infra limits set proxy-1 0", "input.invalid", "from 1 to"),
        ("infra limits set nothing 3", "server.unknown", "nothing"),
        ("rest token create x --hours 0", "input.invalid", "hours"),
        ("rest token revoke nothing", "token.unknown", "nothing"),
        ("job run demo --rest", "input.invalid", "--token-file"),
        ("job run demo --rest --token-file /none", "rest.token-file", "/none"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(site: Site, command: str, code: str, words: str) -> None:
    before = done(site, "job", "list")["jobs"], done(site, "infra", "limits", "list")["servers"]
    status, found, message = refused(site, *shlex.split(command))
    assert (status, found) == (3 if code == "rest.token-file" else 2, code)
    assert words in message
    assert before == (done(site, "job", "list")["jobs"], done(site, "infra", "limits", "list")["servers"])


@pytest.mark.parametrize(
    "command", ["job create j", "job schedule", "infra limits set x many", "rest", "infra proxies"]
)
def test_wrong_arguments_end_with_2(site: Site, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--config", str(site.paths["console"]), *shlex.split(command)])
    assert caught.value.code == 2 and "usage" in capsys.readouterr().err


def test_fields_by_their_path() -> None:
    assert merge({"a": {"b": 1}}, nested("a.c", 2)) == {"a": {"b": 1, "c": 2}}
    assert nested("x", [1]) == {"x": [1]}
