# SPDX-License-Identifier: MIT
"""The calls of PropertyCollector that vcsim lacks."""

from __future__ import annotations

from typing import Any

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from tests.fakes.vcenter.conftest import Site

_Collector = vmodl.query.PropertyCollector


def spec_of(session: Any, path: str) -> Any:
    """One property of every managed entity."""
    content = session.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.ManagedEntity], True)
    step = _Collector.TraversalSpec(name="view", path="view", type=vim.view.ContainerView, skip=False)
    return _Collector.FilterSpec(
        objectSet=[_Collector.ObjectSpec(obj=view, skip=True, selectSet=[step])],
        propSet=[_Collector.PropertySpec(type=vim.ManagedEntity, pathSet=[path])],
    )


def test_check_for_updates_does_not_wait(site: Site, session: Any) -> None:
    collector = session.RetrieveContent().propertyCollector
    vm = site.vm(session, "files-vm")
    spec = _Collector.FilterSpec(
        objectSet=[_Collector.ObjectSpec(obj=vm)],
        propSet=[_Collector.PropertySpec(type=vim.VirtualMachine, pathSet=["runtime.powerState"])],
    )
    made = collector.CreateFilter(spec, False)
    first = collector.CheckForUpdates(None)
    assert first.filterSet[0].objectSet[0].changeSet[0].val == "poweredOff"
    assert collector.CheckForUpdates(first.version) is None
    other = site.connect()  # a wait on the same collector would take the update
    WaitForTask(site.vm(other, "files-vm").PowerOnVM_Task())
    second = collector.CheckForUpdates(first.version)
    assert second.filterSet[0].objectSet[0].changeSet[0].val == "poweredOn"
    made.Destroy()
    WaitForTask(site.vm(other, "files-vm").PowerOffVM_Task())


def test_a_retrieval_in_pages_is_read_or_cancelled(session: Any) -> None:
    collector = session.RetrieveContent().propertyCollector
    one = _Collector.RetrieveOptions(maxObjects=1)
    page = collector.RetrievePropertiesEx([spec_of(session, "name")], one)
    seen = [page.objects[0].obj]
    while page.token:
        page = collector.ContinueRetrievePropertiesEx(page.token)
        seen += [each.obj for each in page.objects]
    assert len(seen) == len(set(seen)) > 10

    page = collector.RetrievePropertiesEx([spec_of(session, "name")], one)
    collector.CancelRetrievePropertiesEx(page.token)
    for call in (collector.ContinueRetrievePropertiesEx, collector.CancelRetrievePropertiesEx):
        with pytest.raises(vmodl.query.InvalidProperty):
            call(page.token)
