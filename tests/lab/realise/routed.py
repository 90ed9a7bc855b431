# SPDX-License-Identifier: MIT
"""A small routed world for tests: hosts behind one router, each a namespace that vanishes with its descriptor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Interface

from lab.observe.namespaces import socket_in
from lab.realise.netns import Namespaces, plug
from lab.topology.topology import Link

needs_root = os.geteuid() != 0

CLIENT, SERVER, OTHER = "proxy-1", "esxi-1", "repository-1"
WORLD = {
    "proxy": {CLIENT: "10.9.1.10"},
    "esxi": {SERVER: "10.9.2.10"},
    "repository": {OTHER: "10.9.3.10"},
}


class Routed:
    """Namespaces of the router and three hosts; `answer` and `connect` make real sockets in them."""

    def __init__(self) -> None:
        self.namespaces = Namespaces(names=None)
        self._open = contextlib.ExitStack()
        try:
            self.namespaces.create("router", router=True)
            links = []
            for role in WORLD.values():
                for host, address in role.items():
                    self.namespaces.create(host)
                    near = IPv4Interface(address.rsplit(".", 1)[0] + ".1/24")
                    links.append(Link(host, "eth0", host, IPv4Interface(address + "/24"), near))
            plug(links, self.namespaces, "router")
        except BaseException:
            self.namespaces.close()
            raise

    @property
    def router(self) -> int:
        return self.namespaces["router"]

    def address(self, host: str) -> str:
        return next(hosts[host] for hosts in WORLD.values() if host in hosts)

    def answer(self, host: str, port: int) -> None:
        """A TCP echo server on that host until the world ends."""
        server = socket_in(self.namespaces[host], socket.AF_INET, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((self.address(host), port))
        server.listen(16)
        self._open.callback(server.close)
        self._open.callback(lambda: _shut(server))
        threading.Thread(target=_echo, args=(server, self._open), daemon=True).start()

    def socket(self, host: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        made = socket_in(self.namespaces[host], socket.AF_INET, kind)
        self._open.callback(made.close)
        return made

    async def connect(self, host: str, target: str, port: int, deadline: float = 0.8) -> str:
        """What a client sees: open, refused, prohibited, timed out, or the errno's name."""
        sock = self.socket(host)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(deadline):
                await asyncio.get_running_loop().sock_connect(sock, (self.address(target), port))
            return "open"
        except TimeoutError:
            return "timed out"
        except ConnectionRefusedError:
            return "refused"
        except OSError as exc:
            return "prohibited" if exc.errno == errno.EHOSTUNREACH else errno.errorcode[exc.errno or 0]
        finally:
            sock.close()

    def close(self) -> None:
        self._open.close()
        self.namespaces.close()


def _shut(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)


def _echo(server: socket.socket, stack: contextlib.ExitStack) -> None:
    while True:
        try:
            peer, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(peer,), daemon=True).start()


def _serve(peer: socket.socket) -> None:
    with peer, contextlib.suppress(OSError):
        while data := peer.recv(65536):
            peer.sendall(data)


@contextlib.contextmanager
def routed() -> Iterator[Routed]:
    """A world that is closed at the end of the block."""
    world = Routed()
    try:
        yield world
    finally:
        world.close()
