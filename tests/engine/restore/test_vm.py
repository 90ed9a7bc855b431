# SPDX-License-Identifier: MIT
"""A restore into a VM: which vCenter it goes into."""

from __future__ import annotations

import pytest

from engine.errors import InputError
from engine.restore.vm import vcenter_of


def test_the_vcenter_follows_the_vm() -> None:
    vcenters = [{"name": "east"}, {"name": "west"}]
    vms = [{"uuid": "1", "vcenter": "west"}]
    assert vcenter_of("1", None, vcenters, vms) == {"name": "west"}
    assert vcenter_of("1", "east", vcenters, vms) == {"name": "east"}
    assert vcenter_of("gone", None, vcenters[:1], vms) == {"name": "east"}
    for uuid, wanted, known in (("1", "north", vcenters), ("gone", None, vcenters), ("1", None, [])):
        with pytest.raises(InputError) as caught:
            vcenter_of(uuid, wanted, known, vms)
        assert "--vcenter" in caught.value.next
