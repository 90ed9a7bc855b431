# SPDX-License-Identifier: MIT
"""Raw rtnetlink: links between namespaces, errors that say what failed, and parsing of anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.realise import rtnetlink
from lab.realise.netns import Namespaces
from lab.realise.rtnetlink import Netlink

pytestmark = pytest.mark.root
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces outside a lab: needs root")


@pytest.fixture
def two() -> Iterator[Namespaces]:
    spaces = Namespaces(names=None)
    spaces.create("a")
    spaces.create("b")
    yield spaces
    spaces.close()


@needs_root
def test_link_addresses_and_route(two: Namespaces) -> None:
    with two.inside("a"):
        a = Netlink()
    with two.inside("b"):
        b = Netlink()
    with a, b:
        a.apply([rtnetlink.veth("left", 10, two["a"], "right", 20, two["b"], mtu=1400)])
        assert a.links()[10] == ("left", False)
        assert b.links()[20] == ("right", False)
        with pytest.raises(TimeoutError, match=r"links not up after 0\.05 s: left"):
            a.wait_up(0.05)
        a.apply([rtnetlink.link_up(10), rtnetlink.address(10, IPv4Interface("10.1.0.1/24"))])
        b.apply(
            [
                rtnetlink.link_up(20),
                rtnetlink.address(20, IPv4Interface("10.1.0.2/24")),
                rtnetlink.default_route(IPv4Address("10.1.0.1"), 20),
            ]
        )
        a.wait_up()
        b.wait_up()
        with pytest.raises(OSError, match=r"add address 10\.1\.0\.1/24: File exists"):
            a.apply([rtnetlink.address(10, IPv4Interface("10.1.0.1/24"))])
        with pytest.raises(OSError, match=r"add default route by 10\.9\.9\.9"):
            b.apply([rtnetlink.default_route(IPv4Address("10.9.9.9"), 20)])
        with pytest.raises(OSError, match="set interface 77 up: No such device"):
            a.apply([rtnetlink.link_up(10), rtnetlink.link_up(77), rtnetlink.link_up(10)])
        assert a.links()[10] == ("left", True)  # answers of the failed batch are not taken for later ones
        a.apply([rtnetlink.link_delete(10)])
        assert 20 not in b.links()
        a.apply([])


@needs_root
def test_namespace_ends_with_its_descriptor(two: Namespaces) -> None:
    with two.inside("a"):
        a = Netlink()
    with a:
        a.apply([rtnetlink.veth("left", 10, two["a"], "right", 20, two["b"])])
        two.drop("b")
        end = 5.0
        import time

        deadline = time.monotonic() + end
        while 10 in a.links():
            assert time.monotonic() < deadline, "the namespace is still there"
            time.sleep(0.005)
    assert "b" not in two
    with pytest.raises(KeyError):
        _ = two["b"]


@given(st.binary(max_size=200))
def test_attributes_of_anything_end(data: bytes) -> None:
    found = list(rtnetlink._attributes(data))
    assert sum(4 + len(value) for _, value in found) <= len(data) + 3 * len(found)
