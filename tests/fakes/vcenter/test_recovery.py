# SPDX-License-Identifier: MIT
"""vcsim is killed while it is used: the gateway builds it anew from the inventory and the storage's chains."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from tests.fakes.vcenter.conftest import MakeSite, Site
from tests.fakes.vcenter.test_snapshots import files, stored, take, until


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A gateway of this test's own."""
    return make_site()


def simulator(site: Site) -> Any:
    """The living vcsim's process."""
    return site.loop.run(site.gateway.world()).simulator.process


def kill(site: Site) -> int:
    """Kills vcsim; returns its pid when the gateway knows: until then a request is sent to a dead vcsim, and gets a 503."""
    process = simulator(site)
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: process.returncode is not None)
    return int(process.pid)


def watching(site: Site, session: Any) -> Any:
    """A collector that watches the name of a VM."""
    query = vmodl.query.PropertyCollector
    collector = session.RetrieveContent().propertyCollector.CreatePropertyCollector()
    spec = query.FilterSpec(
        objectSet=[query.ObjectSpec(obj=site.vm(session, "files-vm"))],
        propSet=[query.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
    )
    collector.CreateFilter(spec, False)
    return collector


def test_inventory_and_snapshots_come_back(site: Site) -> None:
    session = site.connect()
    vm = site.vm(session, "files-vm")
    for name in ("one", "two", "three"):
        take(vm, name)
    middle = vm.snapshot.rootSnapshotList[0].childSnapshotList[0].snapshot
    WaitForTask(middle.RemoveSnapshot_Task(removeChildren=False))
    site.loop.run(site.gateway.reported("vm.power", {"vm": "files-vm", "on": True}))
    instance = session.RetrieveContent().about.instanceUuid
    before = files(vm.config)
    old = kill(site)

    with pytest.raises(vim.fault.NotAuthenticated):
        _ = vm.name  # logins are lost
    session = site.connect()
    assert simulator(site).pid != old
    assert session.RetrieveContent().about.instanceUuid == instance
    vm = site.vm(session, "files-vm")
    assert files(vm.config) == before == stored(site)
    [root] = vm.snapshot.rootSnapshotList
    assert (root.name, root.description) == ("one", "about one")
    assert root.createTime == datetime(2026, 1, 1, tzinfo=UTC), "when it was taken, as the storage has it"
    assert [child.name for child in root.childSnapshotList] == ["three"]
    assert vm.snapshot.currentSnapshot == root.childSnapshotList[0].snapshot
    assert vm.runtime.powerState == "poweredOn"
    refs = [s["ref"] for s in site.fabric.storage.vms["files-vm"]["snapshots"]]  # type: ignore[union-attr]
    assert refs == [root.snapshot._moId, root.childSnapshotList[0].snapshot._moId]
    # the snapshots found again can be removed
    WaitForTask(vm.RemoveAllSnapshots_Task())
    assert all(len(chain) == 1 for chain in stored(site).values())
    entries = [json.loads(line) for line in site.journal.read_text().splitlines()]
    assert [e["detail"]["reason"] for e in entries if e["fault"] == "lost"] == ["vcsim ended with -9"]


def test_killed_while_a_snapshot_is_being_made(site: Site) -> None:
    import asyncio

    session = site.connect()
    vm = site.vm(session, "files-vm")
    assert site.fabric is not None
    site.fabric.storage.hold = hold = asyncio.Event()
    vm.CreateSnapshot_Task(name="half", memory=False, quiesce=False)
    until(lambda: site.gateway.lock("files-vm").locked())
    kill(site)
    site.fabric.storage.hold = None
    site.loop.loop.call_soon_threadsafe(hold.set)
    session = site.connect()
    # undone in the storage, or (had it got further) shown: never one without the other
    vm = site.vm(session, "files-vm")
    assert vm.snapshot is None
    assert site.fabric.storage.vms["files-vm"]["snapshots"] == []
    assert files(vm.config) == stored(site)


def test_requests_wait_for_the_new_one(site: Site) -> None:
    outcome: list[tuple[int, bytes]] = []

    def ask() -> None:
        connection = http.client.HTTPSConnection("127.0.0.1", site.port, context=site.trust, timeout=60)
        connection.request("GET", "/sdk/vimServiceVersions.xml")
        answer = connection.getresponse()
        outcome.append((answer.status, answer.read()))
        connection.close()

    kill(site)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [status for status, _ in outcome] == [200] * 4
    assert all(b"8.0.3.0" in body for _, body in outcome)


def test_a_long_poll_ends_when_vcsim_dies(site: Site) -> None:
    session = site.connect()
    collector = watching(site, session)
    failed: list[BaseException] = []

    def poll() -> None:
        try:
            version = collector.WaitForUpdatesEx("").version
            collector.WaitForUpdatesEx(version, vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=300))
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=poll)
    thread.start()
    time.sleep(0.3)  # let the poll reach vcsim; if it has not yet, it ends as well
    kill(site)
    thread.join(30)
    assert not thread.is_alive()
    assert failed, site.journal.read_text()[-900:]


def test_a_client_that_leaves_ends_its_poll(site: Site) -> None:
    session = site.connect()
    collector = watching(site, session)
    upstream = site.loop.run(site.gateway.world()).upstream
    version = collector.WaitForUpdatesEx("").version
    connection = http.client.HTTPSConnection("127.0.0.1", site.port, context=site.trust, timeout=60)
    body = (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><WaitForUpdatesEx xmlns="urn:vim25">'
        f'<_this type="PropertyCollector">{collector._moId}</_this><version>{version}</version></WaitForUpdatesEx></s:Body></s:Envelope>'
    )
    connection.request("POST", "/sdk", body, {"Cookie": session._stub.cookie.split(";")[0]})
    until(lambda: len(site.gateway._server._connections) >= 2)  # type: ignore[union-attr]
    connection.close()
    until(lambda: len(site.gateway._server._connections) <= 1)  # type: ignore[union-attr]
    assert not upstream.closed


def test_a_panic_that_wedges_an_object_is_cured(site: Site) -> None:
    old = simulator(site).pid
    option = vim.option.OptionValue(key="config.vmacore.soap.sessionTimeout", value="not a duration")
    admin = site.loop.run(site.gateway.world()).admin  # clients are not let
    site.loop.run(admin.call(admin.content.setting, "UpdateOptions", changedValue=[option]))
    with pytest.raises(Exception, match="503"):  # vcsim panics in this Login, and would hang in every later one
        site.connect()
    assert site.connect().CurrentTime() is not None
    assert simulator(site).pid != old


def test_vcsim_dies_with_the_gateway(make_site: MakeSite) -> None:
    site = make_site()
    pid = simulator(site).pid
    site.loop.run(site.gateway.stop())
    until(lambda: not Path(f"/proc/{pid}").exists())
