# SPDX-License-Identifier: MIT
"""Power by the calls beside PowerOnVM and PowerOffVM: through the guest, and of several VMs."""

from __future__ import annotations

import pytest
from pyVmomi import vim

from fakes.core.fabric import FabricClient
from tests.fakes.vcenter.real import RealSite, done
from tests.fakes.vcenter.real import real as real


def power(real: RealSite, name: str) -> tuple[str, str]:
    """What vCenter and the storage say."""
    return real.vm(name).runtime.powerState, real.call("vm.get", vm=name)["power"]


def test_a_guest_is_asked_through_its_tools(real: RealSite) -> None:
    vm = real.vm("proxy-2")
    for call in (vm.ShutdownGuest, vm.RebootGuest, vm.StandbyGuest):
        with pytest.raises(vim.fault.ToolsUnavailable):
            call()
    assert power(real, "proxy-2") == ("poweredOn", "on")
    client = FabricClient(real.fabric / "vcenter.sock")
    report = {"hostname": "proxy-2", "addresses": ["10.0.0.2"], "family": "linuxGuest", "full_name": "Linux"}
    client.call("tools.report", vm="proxy-2", running=True, **report)
    client.close()
    vm.RebootGuest()
    assert power(real, "proxy-2") == ("poweredOn", "on")
    vm.ShutdownGuest()
    assert power(real, "proxy-2") == ("poweredOff", "off")
    with pytest.raises(vim.fault.InvalidPowerState):
        vm.ShutdownGuest()


def test_several_vms_are_switched_on(real: RealSite) -> None:
    center = real.session.RetrieveContent().rootFolder.childEntity[0]
    result = done(center.PowerOnMultiVM_Task([real.vm("web"), real.vm("proxy-2")]))
    assert [each.vm for each in result.attempted] == [real.vm("web")]
    assert [each.vm for each in result.notAttempted] == [real.vm("proxy-2")]
    assert isinstance(result.notAttempted[0].fault, vim.fault.InvalidPowerState)
    assert power(real, "web") == ("poweredOn", "on")
