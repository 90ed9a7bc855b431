# SPDX-License-Identifier: MIT
"""The hosts' network namespaces and the links between them and the router.

A namespace is held by a descriptor of the supervisor; its name under `/run/netns` lies on the lab's own tmpfs. Kernel
settings per namespace are those of the lab reference, section 1.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import PowerMissing
from lab.realise import kernel, rtnetlink
from lab.realise.rtnetlink import LOOPBACK, Netlink
from lab.topology import Link, Topology

NAMES = Path("/run/netns")
FIRST_ROUTER_INDEX = 100
HOST_INDEX = 2

# The inherited bbr is 2-4 times slower over veth; IPv6 would be noise in every capture. A killed process leaves sockets whose
# last bytes nobody takes any more; each keeps its namespace alive until the kernel gives up: after 8 tries (25 s) by default.
# Nothing is lost on a veth, but packets overtake each other when a sender changes its core: no retransmission for that.
EVERY_HOST = {
    "net/ipv4/tcp_reordering": "127",
    "net/ipv4/tcp_recovery": "0",
    "net/ipv4/tcp_early_retrans": "0",
    "net/ipv4/tcp_orphan_retries": "3",
    "net/ipv4/tcp_congestion_control": "reno",
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
}
# With the default icmp_ratemask only a handful of ICMP rejects would leave the router.
ROUTER = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/icmp_ratemask": "0",
    "net/ipv4/icmp_ratelimit": "0",
    "net/netfilter/nf_conntrack_acct": "1",
    "net/netfilter/nf_conntrack_timestamp": "1",
}


class Namespaces:
    """One network namespace per host, by name."""

    def __init__(self, names: Path | None = NAMES) -> None:
        self._fds: dict[str, int] = {}
        self._names = names

    def __getitem__(self, host: str) -> int:
        """The descriptor of a host's namespace; KeyError if there is none."""
        return self._fds[host]

    def __contains__(self, host: str) -> bool:
        return host in self._fds

    def __iter__(self) -> Iterator[str]:
        return iter(self._fds)

    def create(self, host: str, *, router: bool = False) -> int:
        """Makes a host's namespace, with loopback up and its kernel settings; returns its descriptor.

        Raises:
            PowerMissing: the kernel does not let this user make one.
        """
        home = kernel.current_netns()
        try:
            try:
                kernel.unshare(kernel.CLONE_NEWNET)
            except OSError as exc:
                raise PowerMissing(f"no new network namespace: {exc.strerror}") from exc
            fd = kernel.current_netns()
            self._fds[host] = fd
            _settings({**EVERY_HOST, **(ROUTER if router else {})})
            with Netlink() as route:
                route.apply([rtnetlink.link_up(LOOPBACK)])
            if self._names is not None:
                self._pin(host)
        finally:
            kernel.setns(home)
            os.close(home)
        return fd

    def adopt(self, host: str, fd: int) -> None:
        """Takes an existing namespace (of a container) as that of `host`; `fd` is owned from here on.

        Raises:
            PowerMissing: the kernel refuses a setting there.
        """
        self.drop(host)
        self._fds[host] = fd
        with kernel.inside(fd):
            _settings(EVERY_HOST)
            if self._names is not None:
                self._pin(host)

    def drop(self, host: str) -> None:
        """Forgets a host's namespace: descriptor and name go."""
        fd = self._fds.pop(host, None)
        if fd is None:
            return
        os.close(fd)
        if self._names is not None and (self._names / host).exists():
            kernel.umount(self._names / host)
            (self._names / host).unlink()

    def close(self) -> None:
        """Drops every namespace."""
        for host in list(self._fds):
            self.drop(host)

    @contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Runs the block in a host's namespace (the calling thread only; do not await inside)."""
        with kernel.inside(self._fds[host]):
            yield

    def _pin(self, host: str) -> None:
        assert self._names is not None
        self._names.mkdir(parents=True, exist_ok=True)
        name = self._names / host
        name.touch()
        kernel.mount("/proc/thread-self/ns/net", name, "none", kernel.MS_BIND)


def _settings(values: dict[str, str]) -> None:
    for key, value in values.items():
        path = Path("/proc/sys") / key
        try:
            path.write_text(value)
        except FileNotFoundError:
            if "ipv6" not in key:  # a kernel without IPv6 has nothing to switch off
                raise PowerMissing(f"the kernel has no setting {key}") from None
        except OSError as exc:
            raise PowerMissing(f"the kernel refuses {key} = {value}: {exc.strerror}") from exc


def create_hosts(topology: Topology, namespaces: Namespaces) -> None:
    """Makes every host's namespace, without links."""
    for name in topology.hosts:
        namespaces.create(name, router=name == topology.router)


def plug(links: list[Link], namespaces: Namespaces, router: str, first_index: int = FIRST_ROUTER_INDEX) -> None:
    """Makes the links of a plan between existing namespaces: addresses, routes, and operstate UP on both ends."""
    centre = namespaces[router]
    with namespaces.inside(router):
        near = Netlink()
    with near:
        messages = []
        for index, link in enumerate(links, first_index):
            messages.append(
                rtnetlink.veth(
                    link.router_interface, index, centre, link.host_interface, HOST_INDEX, namespaces[link.host]
                )
            )
        for index, link in enumerate(links, first_index):
            messages += [rtnetlink.address(index, link.router_address), rtnetlink.link_up(index)]
        near.apply(messages)
        for link in links:
            with namespaces.inside(link.host):
                far = Netlink()
            with far:
                far.apply(
                    [
                        rtnetlink.link_up(LOOPBACK),
                        rtnetlink.link_up(HOST_INDEX),
                        rtnetlink.address(HOST_INDEX, link.host_address),
                        rtnetlink.default_route(link.router_address.ip, HOST_INDEX),
                    ]
                )
                far.wait_up(only={link.host_interface})
        near.wait_up(only={link.router_interface for link in links})


def replug(link: Link, namespaces: Namespaces, router: str) -> None:
    """Makes one link anew, for a host whose namespace was replaced; the router's end keeps name and index."""
    with namespaces.inside(router), Netlink() as route:
        present = {name: index for index, (name, _) in route.links().items()}
        index = present.get(link.router_interface) or max(FIRST_ROUTER_INDEX - 1, *present.values()) + 1
        if link.router_interface in present:
            try:
                route.apply([rtnetlink.link_delete(index)])
            except OSError as exc:
                if exc.errno != errno.ENODEV:  # it went with the namespace of its other end this instant
                    raise
    plug([link], namespaces, router, first_index=index)
