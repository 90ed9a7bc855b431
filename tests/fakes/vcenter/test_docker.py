# SPDX-License-Identifier: MIT
"""vcsim in a container without a network, the gateway and a client inside its namespace."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.vcenter import source
from tests.fakes.vcenter.conftest import MakeSite
from tests.fakes.vcenter.test_snapshots import files, stored, take, until

docker = pytest.importorskip("docker")
pytestmark = [pytest.mark.docker, pytest.mark.root]

CLIENT = """
import ssl
from pyVim.connect import SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim
trust = ssl._create_unverified_context()
session = SmartConnect(host="127.0.0.1", port=443, user="administrator@vsphere.local", pwd="VMware1!", sslContext=trust)
content = session.RetrieveContent()
view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True).view
task = view[0].CreateSnapshot_Task(name="s", memory=False, quiesce=False)
print([vm.name for vm in view], WaitForTask(task), WaitForTask(task.info.result.RemoveSnapshot_Task(False)))
"""
INVENTORY = """
hosts: [{name: esxi-1, address: 10.77.21.2}]
datastores: [{name: datastore1, capacity: 1GiB, hosts: [esxi-1]}]
vms: [{name: one, host: esxi-1, datastore: datastore1, disks: [{size: 1MiB}]}]
"""


@pytest.fixture(scope="module")
def image(vcsim: source.VcsimSource) -> Iterator[str]:
    """An image of our binary, removed afterwards."""
    from fakes.vcenter import docker as containers

    if os.geteuid() != 0:
        pytest.skip("needs root to enter the container's namespace")
    try:
        client = docker.from_env(timeout=5)
        client.ping()
    except Exception as exc:
        pytest.skip(f"no Docker engine answers: {exc}")
    assert vcsim.executable is not None
    name = f"vadplab-test-vcsim:{uuid.uuid4().hex[:12]}"
    containers.build_image(vcsim.executable, name)
    try:
        yield name
    finally:
        client.images.remove(name, force=True)
        client.close()


def containers_of(image: str) -> int:
    """How many containers of that image there are, ended ones included."""
    client = docker.from_env(timeout=10)
    try:
        return len(client.containers.list(all=True, filters={"ancestor": image}))
    finally:
        client.close()


def test_the_gateway_works_in_the_containers_namespace(image: str, tmp_path: Path) -> None:
    from fakes.vcenter import docker as containers

    (tmp_path / "inventory.yaml").write_text(INVENTORY)

    async def run() -> str:
        container = await containers.start(image, "administrator", "VMware1!", tmp_path)
        try:
            assert container.pid > 0
            enter = ["nsenter", "-t", str(container.pid), "-n", "--"]
            gateway = await asyncio.create_subprocess_exec(
                *enter,
                *(sys.executable, "-m", "fakes.vcenter", "--listen", "127.0.0.1:443"),
                *("--attach", "127.0.0.1:8989", "--inventory", str(tmp_path / "inventory.yaml")),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert gateway.stdout is not None and gateway.stderr is not None
            try:
                line = await asyncio.wait_for(gateway.stdout.readline(), 60)
                assert line == b"https://127.0.0.1:443/sdk\n", await gateway.stderr.read()
                client = await asyncio.create_subprocess_exec(
                    *enter, sys.executable, "-c", CLIENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                out, _ = await asyncio.wait_for(client.communicate(), 60)
                return out.decode()
            finally:
                gateway.terminate()
                await gateway.wait()
        finally:
            await container.stop()

    assert asyncio.run(run()) == "['one'] success success\n"
    until(lambda: containers_of(image) == 0)


def test_alone_the_gateway_starts_the_container_and_another_when_it_dies(image: str, make_site: MakeSite) -> None:
    site = make_site(source=source.VcsimSource("docker", image=image))
    vm = site.vm(site.connect(), "files-vm")
    take(vm, "kept")
    world = site.loop.run(site.gateway.world())
    os.kill(world.simulator.pid, signal.SIGKILL)
    until(lambda: site.gateway._lives == 2)
    vm = site.vm(site.connect(), "files-vm")
    assert vm.snapshot.rootSnapshotList[0].name == "kept"
    assert files(vm.config) == stored(site)
    site.loop.run(site.gateway.stop())
    until(lambda: containers_of(image) == 0)


def test_a_killed_owner_leaves_no_container(image: str, tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib, sys\n"
        "from fakes.vcenter import docker\n"
        "async def run():\n"
        f"    made = await docker.start({image!r}, 'administrator', 'x', pathlib.Path({str(tmp_path)!r}))\n"
        "    print(made.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(run())\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert int(owner.stdout.readline()) > 0
    assert containers_of(image) == 1
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait(10)
    owner.stdout.close()
    until(lambda: containers_of(image) == 0)


def test_the_image_is_found_by_name(image: str, tmp_path: Path) -> None:
    found = source.locate(f"docker:{image}", tmp_path)
    assert (found.kind, found.image) == ("docker", image)
    with pytest.raises(source.VcsimMissing, match="docker pull"):
        source.locate("docker:vadplab-test-vcsim:none", tmp_path)
