# SPDX-License-Identifier: MIT
"""The shipped `postgres` topology: step 3 is a connection like any other, judged, and blocked it fails the job there.

The lab's other new way in is here too: a job started over REST, whose step 1 is a connection to 9419.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.topology import find
from tests.e2e import harness
from tests.e2e.harness import Lab, lines, run_text
from tests.engine.model.servers import needs_postgres


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The postgres topology with small disks, under its own policy and a rule for REST."""
    home = tmp_path_factory.mktemp("home")
    text = find(Path("postgres")).read_text()
    for shipped, small in harness.DRILL_SIZES.items():
        text = text.replace(shipped, small)
    topology = home / "postgres.yaml"
    topology.write_text(text)
    policies = Path(find(None)).parents[2] / "firewall_rules" / "policies"
    plan = yaml.safe_load((policies / "postgres-12.3.yaml").read_text())
    plan["name"] = "postgres-and-rest"
    rest = yaml.safe_load((policies / "rest-12.3.yaml").read_text())
    plan["rules"] += [rule for rule in rest["rules"] if rule["id"] == "C8"]
    policy = home / "policy.yaml"
    policy.write_text(yaml.safe_dump(plan, sort_keys=False))
    with harness.up(home, "database", "--topology", str(topology), "--policy", str(policy)) as made:
        yield made


@needs_postgres
def test_step_3_is_one_judged_connection(lab: Lab) -> None:
    document, run = lab.job(code=0)
    assert document["result"] == "success"
    (flow,) = run.attempts("C13")
    assert (flow["step"], flow["rule"], flow["verdict"], flow["matched"]) == ("3", "C13", "allowed", "5-tuple")
    assert set(flow["witnesses"].values()) == {"allowed"} and flow["payload_received"] > 0
    assert document["invariants"]["I3"] == "held" and run.step("3")["flows"] == [flow["flow"]]
    assert run.syns_to(lab.address("config-db")) == {(lab.address("backup-server"), lab.address("config-db"), 5432)}


@needs_postgres
def test_blocked_it_fails_at_step_3_before_anything_else(lab: Lab) -> None:
    before = lab.points()
    # Kept connections stay: what a firewall cut dies in the kernel seconds after its lab, and the fixture looks at once.
    lab.done("firewall", "block", "C13", "--new-only")
    try:
        document, run = lab.job(code=1)
    finally:
        lab.done("firewall", "reset")
    error = document["error"]
    assert (error["code"], error["step"], error["host"], error["target"], error["port"]) == (
        "connect.timed-out", "3", "backup-server", "config-db", 5432,
    )  # fmt: skip
    assert run.rows() == {"C1", "C13"} and run.verdicts("C13") == {"timed out"} and run.gateway() == []
    assert lab.points() == before
    assert lab.job(code=0)[0]["result"] == "success", "the service finds its database again"


@needs_postgres
def test_a_job_started_over_rest(lab: Lab) -> None:
    config = str(lab.folder.host("console") / "etc" / "engine.yaml")
    token = lab.folder.host("console") / "var" / "token"

    def console(*command: str) -> Any:
        return run_text(
            lab.home, "--lab", lab.name, "exec", "console", "--",
            sys.executable, "-m", "engine.console", "--config", config, "--json", *command,
        )  # fmt: skip

    assert console("rest", "token", "create", "script", "--to", str(token)).returncode == 0
    known = {s["id"] for s in _sessions(console)}
    done = console("job", "run", "demo", "--rest", "--token-file", str(token))
    assert done.returncode == 0, done.stdout + done.stderr
    events = lines(lab.folder.host("console") / "var" / "events.jsonl")
    opened = [e for e in events if e["kind"] == "attempt" and e["remote"][1] == 9419 and e["session"] not in known]
    assert [(e["step"], e["target"]) for e in opened] == [("1", "backup-server")]
    service = lines(lab.folder.host("backup-server") / "var" / "events.jsonl")
    steps = {e["step"] for e in service if e["kind"] == "step" and e["session"] == opened[0]["session"]}
    assert {"1", "3", "22"} <= steps, "the same run as any other"


def _sessions(console: Any) -> list[dict[str, Any]]:
    shown = yaml.safe_load(console("job", "show", "demo").stdout)
    return list(shown["last_runs"])
