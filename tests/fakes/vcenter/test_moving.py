# SPDX-License-Identifier: MIT
"""VMs that move to another host, and disks that do not."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.fakes.vcenter.conftest import HOSTS
from tests.fakes.vcenter.real import RealSite, done, take
from tests.fakes.vcenter.real import real as real
from tests.fakes.vcenter.test_nfc import post


def host(real: RealSite, name: str) -> Any:
    """A host by its name in the inventory."""
    cluster = real.session.RetrieveContent().rootFolder.childEntity[0].hostFolder.childEntity[0]
    return next(each for each in cluster.host if each.name == HOSTS[name])


def ticket(real: RealSite, vm: Any) -> str:
    """The host that a ticket for the VM's files names."""
    call = (
        '<NfcGetVmFiles xmlns="urn:vim25"><_this type="NfcService">nfcService</_this>'
        f'<vm type="VirtualMachine">{vm._moId}</vm></NfcGetVmFiles>'
    )
    status, body = post(real.site, call, real.session._stub.cookie.split(";")[0])
    assert status == 200, body
    return body.partition("<host>")[2].partition("<")[0]


def test_a_vm_moves_to_another_host_and_its_tickets_follow(real: RealSite) -> None:
    vm = real.vm("web")
    for move in (
        lambda name: vm.RelocateVM_Task(vim.vm.RelocateSpec(host=host(real, name), pool=vm.resourcePool)),
        lambda name: vm.MigrateVM_Task(host=host(real, name), priority="defaultPriority"),
    ):
        for name in ("esxi-2", "esxi-1"):
            done(move(name))
            assert vm.runtime.host.name == HOSTS[name]
            assert ticket(real, vm) == HOSTS[name]
    take(vm)


def test_disks_stay_where_they_are(real: RealSite) -> None:
    vm, far = real.vm("web"), real.vm("far")
    with pytest.raises(vmodl.fault.NotSupported):
        done(vm.RelocateVM_Task(vim.vm.RelocateSpec(datastore=far.datastore[0])))
    with pytest.raises(vim.fault.InvalidDatastore):
        done(far.RelocateVM_Task(vim.vm.RelocateSpec(host=host(real, "esxi-1"))))
    assert [each.name for each in vm.datastore] == ["datastore1"]


def test_a_clone_needs_a_host_that_mounts_its_datastore(real: RealSite) -> None:
    vm, far = real.vm("web"), real.vm("far")

    def clone(name: str, **where: Any) -> Any:
        spec = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(**where), powerOn=False, template=False)
        return done(vm.CloneVM_Task(folder=vm.parent, name=name, spec=spec))

    with pytest.raises(vim.fault.InvalidDatastore):
        clone("one", datastore=far.datastore[0])
    copy = clone("two", datastore=far.datastore[0], host=host(real, "esxi-2"))
    with pytest.raises(vim.fault.InvalidDatastore):
        done(copy.RelocateVM_Task(vim.vm.RelocateSpec(host=host(real, "esxi-1"))))
    done(copy.Destroy_Task())
    assert vm.name == "web"  # the same vcsim

    spec = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), powerOn=False, template=True)
    template = done(vm.CloneVM_Task(folder=vm.parent, name="three", spec=spec))
    done(template.Destroy_Task())
    assert template not in vm.resourcePool.vm
    assert real.vm("web") == vm  # every VM of the view can be read


def test_a_running_task_can_not_be_cancelled(real: RealSite) -> None:
    vm = real.vm("web")
    task = vm.CreateSnapshot_Task(name="kept", memory=False, quiesce=False)
    with pytest.raises(vmodl.fault.NotSupported):
        task.CancelTask()
    done(task)
    assert task.info.entityName == "web"
    assert vm.snapshot.currentSnapshot == task.info.result
