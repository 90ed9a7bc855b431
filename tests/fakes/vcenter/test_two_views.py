# SPDX-License-Identifier: MIT
"""A vCenter and a host over one storage: what is done in one is seen in the other."""

from __future__ import annotations

from typing import Any

from tests.fakes.vcenter.conftest import MakeSite, Site
from tests.fakes.vcenter.real import RealSite, real_inventory, take
from tests.fakes.vcenter.real import real as real


def test_a_new_name_shows_in_the_other_view(real: RealSite, make_site: MakeSite) -> None:
    snapshot = take(real.vm("web"), "old")
    host = make_site(
        fabric=False,
        fabric_folder=real.fabric,
        inventory=real_inventory(),
        view="host",
        host="esxi-1",
        username="root",
    )

    def shown(site: Site, session: Any) -> list[tuple[str, str]]:
        return [(each.name, each.description) for each in site.vm(session, "web").snapshot.rootSnapshotList]

    there = host.connect_as("root")
    assert shown(host, there) == [("old", "mark old")]
    snapshot.RenameSnapshot(name="new", description="another")
    there = host.connect_as("root")
    assert shown(host, there) == [("new", "another")]
    host.vm(there, "web").snapshot.currentSnapshot.RenameSnapshot(name="newer", description=None)
    assert shown(real.site, real.site.connect()) == [("newer", "another")]
