# SPDX-License-Identifier: MIT
"""A container as a host: its namespace plugged into the router, made anew, and gone with the caretaker's lab."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import tarfile
from collections.abc import Iterator
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from fakes.vcenter import source
from lab.errors import ControlFailed
from lab.realise import container, netns, outside
from lab.realise.netns import Namespaces
from lab.realise.outside import Outside
from lab.topology import Link
from tests.lab.realise.labs import eventually

pytestmark = [
    pytest.mark.docker,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="plugging a container needs root"),
]
IMAGE = "vadplab-test-vcsim:local"
LINK = Link("vcenter", "eth0", "vcenter", IPv4Interface("10.77.6.10/24"), IPv4Interface("10.77.6.1/24"))
NEAR = Link("proxy-1", "eth0", "proxy-1", IPv4Interface("10.77.3.10/24"), IPv4Interface("10.77.3.1/24"))


def engine() -> Any:
    docker = pytest.importorskip("docker")
    try:
        client = docker.from_env(timeout=30)
        client.ping()
    except docker.errors.DockerException as exc:
        pytest.skip(f"no Docker engine answers: {exc}")
    return client


@pytest.fixture(scope="module")
def image() -> Iterator[Any]:
    """An image made from our own vcsim, and the client that made it."""
    client = engine()
    try:
        found = source.locate("built", source.default_cache())
    except source.VcsimMissing as exc:
        pytest.skip(f"no vcsim to make an image from: {exc}")
    assert found.executable is not None
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.add(found.executable, "vcsim")
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
    repository, _, tag = IMAGE.partition(":")
    client.api.import_image_from_data(
        data.getvalue(), repository=repository, tag=tag, changes=['ENTRYPOINT ["/vcsim"]']
    )
    yield client
    client.images.remove(IMAGE, force=True)
    client.close()


@pytest.fixture
def caretaker() -> Iterator[Outside]:
    pid, sock = outside.start()
    end = Outside(sock)
    yield end
    end.close()
    eventually(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, "the caretaker does not end", deadline=30)


def answers(spaces: Namespaces) -> bool:
    with spaces.inside("proxy-1"):
        sock = socket.socket()
    with sock:
        sock.settimeout(1)
        return sock.connect_ex(("10.77.6.10", 8989)) == 0


def names(client: Any) -> set[str]:
    """Names of all containers, dying ones included."""
    return {name.removeprefix("/") for found in client.api.containers(all=True) for name in found["Names"] or ()}


def start(caretaker: Outside, spaces: Namespaces, lab: str) -> dict[str, Any]:
    command = ["-tls=false", "-l", "127.0.0.1:8989", "-dc", "0"]
    result, (fd,) = asyncio.run(
        caretaker.call("container.start", lab=lab, host="vcenter", image=IMAGE, command=command, ready="GOVC_URL")
    )
    spaces.adopt("vcenter", fd)
    found: dict[str, Any] = result
    return found


def test_container_is_a_host(image: Any, caretaker: Outside, tmp_path: Path) -> None:
    lab = str(tmp_path)
    spaces = Namespaces(names=None)
    try:
        spaces.create("router", router=True)
        spaces.create("proxy-1")
        first = start(caretaker, spaces, lab)
        netns.plug([LINK, NEAR], spaces, "router")
        with spaces.inside("vcenter"):
            inner, gateway = socket.socket(), socket.create_server(("10.77.6.10", 8989))
        with inner, gateway:  # a gateway in the container's namespace: outwards on the link, inwards on loopback
            inner.connect(("127.0.0.1", 8989))
            assert answers(spaces)
        assert container.name_of(lab, "vcenter") in names(image)
        assert asyncio.run(caretaker.call("container.state", lab=lab, host="vcenter"))[0] == {
            "status": "running", "pid": first["pid"],
        }  # fmt: skip

        os.kill(first["pid"], 9)
        second = start(caretaker, spaces, lab)  # the dead one is removed on the way
        assert second["pid"] != first["pid"]
        netns.replug(LINK, spaces, "router")
        with spaces.inside("vcenter"):
            gateway = socket.create_server(("10.77.6.10", 8989))
        with gateway:
            assert answers(spaces)
    finally:
        spaces.close()
    caretaker.close()  # the lab is gone
    eventually(
        lambda: container.name_of(lab, "vcenter") not in names(image),
        "the container is left",
        deadline=30,
    )


def test_container_that_ends_at_once(image: Any, caretaker: Outside, tmp_path: Path) -> None:
    with pytest.raises(ControlFailed, match=r"is exited: .*no-such-flag"):
        asyncio.run(
            caretaker.call(
                "container.start",
                lab=str(tmp_path),
                host="vcenter",
                image=IMAGE,
                command=["-no-such-flag"],
                ready="GOVC_URL",
            )
        )
    asyncio.run(caretaker.call("container.remove", lab=str(tmp_path), host="vcenter"))
    assert asyncio.run(caretaker.call("container.state", lab=str(tmp_path), host="vcenter"))[0]["status"] == "absent"


def test_unknown_image(image: Any, caretaker: Outside, tmp_path: Path) -> None:
    with pytest.raises(ControlFailed, match="ImageNotFound"):
        asyncio.run(
            caretaker.call("container.start", lab=str(tmp_path), host="vcenter", image="vadplab-none:1", command=[])
        )
