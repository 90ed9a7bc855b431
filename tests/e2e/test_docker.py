# SPDX-License-Identifier: MIT
"""The same demo with vcsim in a container: the rest of the lab can not tell; nothing of Docker's is left by any end."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testcontainers.core.docker_client import DockerClient

from fakes.vcenter import docker as vcsim_docker
from fakes.vcenter import source
from lab.realise import lifecycle
from tests.e2e.harness import Lab, drill_topology, up
from tests.e2e.test_kills import assert_recovered, run_until
from tests.lab.realise.labs import Remains, eventually

pytestmark = [
    pytest.mark.lab,
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="plugging a container needs root"),
]


def why_no_engine() -> str | None:
    try:
        DockerClient().client.ping()
    except Exception as exc:
        return f"no Docker engine answers: {type(exc).__name__}"
    return None


@pytest.fixture(scope="module")
def engine() -> Any:
    if why := why_no_engine():
        pytest.skip(why)
    return DockerClient().client


@pytest.fixture(scope="module")
def image(engine: Any) -> Iterator[str]:
    """An image of our own, made from nothing but the built binary: none can be pulled in a closed network."""
    found = source.locate("built", source.default_cache())
    assert found.executable is not None
    name = f"vadplab-test-vcsim:{uuid.uuid4().hex[:8]}"
    vcsim_docker.build_image(found.executable, name)
    yield name
    engine.images.remove(name, force=True)


def assert_answers(lab: Lab, deadline: float = 60.0) -> None:
    """vCenter answers the engine again."""
    end = time.monotonic() + deadline
    while (answer := lab("infra", "rescan")).code:
        log = lab.folder.supervisor_log.read_text()[-2000:]
        assert time.monotonic() < end, f"{answer.stdout}{answer.stderr}{log}"


def containers(engine: Any, lab: Lab) -> list[Any]:
    return list(engine.containers.list(all=True, filters={"label": f"vadplab.lab={lab.folder.path}"}))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, engine: Any, image: str) -> Iterator[Lab]:
    home = tmp_path_factory.mktemp("docker")
    with up(home, "docker", "--vcsim", f"docker:{image}") as found:
        (container,) = containers(engine, found)
        assert container.attrs["HostConfig"]["NetworkMode"] == "none"
        yield found
    assert containers(engine, found) == []


def test_demo_with_vcsim_in_a_container(lab: Lab, tmp_path: Path) -> None:
    document, run = lab.job(code=0)
    assert document["result"] == "success"
    assert run.verdicts("H1") == run.verdicts("H4") == {"allowed"}
    point = next(p for p in document["restore_points"] if p["vm"] == "linux-vm")
    restored = lab.done(
        *("restore", point["point"], "--vm", "linux-vm", "--disk", "1"),
        *("--to", str(tmp_path / "disk.img"), "--compare", "--check"),
    )
    assert restored["comparison"]["equal"] and restored["check"]["filesystem"] == "file-system-consistent"


@pytest.mark.parametrize("step", ["16", "20c"])
def test_killed_container_is_made_anew(lab: Lab, engine: Any, step: str) -> None:
    (container,) = containers(engine, lab)
    answer = run_until(lab, step, lambda job: container.kill())
    assert answer.document["result"] in ("success", "warning", "failed"), answer.stdout
    eventually(lambda: [c.status for c in containers(engine, lab)] == ["running"], "no new container", 60)
    assert containers(engine, lab)[0].id != container.id
    assert_answers(lab)
    assert_recovered(lab)


def test_killed_supervisor_leaves_no_container(tmp_path: Path, engine: Any, image: str) -> None:
    lab = Lab(tmp_path, "gone")
    lab.done("up", "--topology", str(drill_topology(tmp_path)), "--vcsim", f"docker:{image}")
    try:
        remains = Remains(lab.folder)
        assert len(containers(engine, lab)) == 1
        os.kill(int(lab.folder.state()["supervisor"]["pid"]), signal.SIGKILL)
        remains.assert_gone()
        eventually(lambda: containers(engine, lab) == [], "a container is left", 30)
    finally:
        if lab.folder.running():
            lifecycle.down(lab.folder)


def test_unknown_image_is_said_before_anything_is_made(tmp_path: Path, engine: Any) -> None:
    answer = Lab(tmp_path, "none")("up", "--vcsim", "docker:vadplab-no-such:image")
    assert answer.code == 3
    assert answer.error["code"] == "vcsim.missing"
    assert not (tmp_path / "labs" / "none" / "hosts").exists()
