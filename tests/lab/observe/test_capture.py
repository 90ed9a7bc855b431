# SPDX-License-Identifier: MIT
"""dumpcap in a router's namespace: real packets through real nftables rules."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.observe import packets
from lab.observe.capture import Capture, free_bytes
from lab.observe.errors import CaptureFailed
from lab.observe.namespaces import enter, socket_in

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")
needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("dumpcap", "nft", "ip", "unshare", "nsenter"))), reason="needs dumpcap, nft and iproute2"
)
CLIENT, SERVER = "10.9.1.10", "10.9.2.10"
RULES = """
table inet t {
  chain fw {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    tcp dport 7000 accept
    tcp dport 7001 reject with tcp reset
    tcp dport 7002 reject with icmpx admin-prohibited
    tcp dport 7004 accept
  }
}
"""


class Namespaces:
    """client - router - server; each a `sleep` in a namespace of its own, ended with the test."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.fd: dict[str, int] = {}
        pids = {}
        for name in ("client", "router", "server"):
            holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo up; exec sleep 60"], stdout=subprocess.PIPE)
            stack.callback(holder.wait)
            stack.callback(holder.kill)
            assert holder.stdout is not None and holder.stdout.readline() == b"up\n"
            stack.callback(holder.stdout.close)
            pids[name] = holder.pid
            self.fd[name] = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, self.fd[name])
        for number, name in enumerate(("client", "server"), 1):
            self.run("router", f"ip link add h{number} type veth peer name eth0 netns {pids[name]}")
            self.run("router", f"ip addr add 10.9.{number}.1/24 dev h{number}; ip link set h{number} up")
            self.run(name, f"ip addr add 10.9.{number}.10/24 dev eth0; ip link set eth0 up; ip link set lo up")
            self.run(name, f"ip route add default via 10.9.{number}.1")
        self.run("router", "ip link set lo up; sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratemask=0")
        self.run("router", "nft -f -", RULES)
        for name, link in (("client", "eth0"), ("server", "eth0"), ("router", "h1"), ("router", "h2")):
            self.run(name, f"for i in $(seq 500); do ip link show {link} | grep -q 'state UP' && exit 0; done; exit 1")

    def run(self, name: str, script: str, text: str = "") -> None:
        command = ["nsenter", f"--net=/proc/self/fd/{self.fd[name]}", "sh", "-ec", script]
        subprocess.run(command, pass_fds=[self.fd[name]], input=text, text=True, check=True, capture_output=True)

    def connect(self, port: int, timeout: float = 0.4) -> socket.socket | str:
        sock = socket_in(self.fd["client"], socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        try:
            sock.connect((SERVER, port))
        except OSError as exc:
            sock.close()
            return type(exc).__name__
        return sock


@pytest.fixture
def world() -> Iterator[Namespaces]:
    with contextlib.ExitStack() as stack:
        yield Namespaces(stack)


def serve(listener: socket.socket, size: int) -> None:
    peer, _ = listener.accept()
    with peer:
        peer.sendall(b"d" * size)
        peer.recv(1)


@pytest.mark.root
@needs_root
@needs_tools
def test_accept_reset_prohibited_drop_and_closed_port(world: Namespaces, tmp_path: Path) -> None:
    size = 3_000_000
    listener = socket_in(world.fd["server"], socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((SERVER, 7000))
    listener.listen()
    thread = threading.Thread(target=serve, args=(listener, size))
    thread.start()

    def traffic() -> list[str]:
        said = []
        got = world.connect(7000, 5)
        assert isinstance(got, socket.socket)
        with got:
            left = size
            while left:
                left -= len(got.recv(65536))
            got.sendall(b"!")
        for port in (7001, 7002, 7003, 7004):
            answer = world.connect(port)
            assert isinstance(answer, str)
            said.append(answer)
        return said

    async def scenario() -> list[str]:
        capture = Capture(tmp_path / "capture.pcapng", netns=world.fd["router"])
        await capture.start()
        try:
            said = await asyncio.to_thread(traffic)
        except BaseException:
            await capture.kill()
            raise
        done = await capture.stop()
        assert done.complete and done.received > 20
        return said

    said = asyncio.run(scenario())
    thread.join(5)
    listener.close()
    assert said == ["ConnectionRefusedError", "OSError", "TimeoutError", "ConnectionRefusedError"]
    flows = {f["dport"]: f for f in packets.read(tmp_path / "capture.pcapng") if f["kind"] == "tcp"}
    assert sorted(flows) == [7000, 7001, 7002, 7003, 7004]
    assert (flows[7000]["sent"], flows[7000]["received"]) == (1, size)
    assert flows[7000]["syn_out"] == 1 and flows[7000]["synack_out"]
    assert [r["by"] for r in flows[7001]["rst"]] == ["router"] and flows[7001]["syn_out"] == 0
    assert [(e["type"], e["code"]) for e in flows[7002]["icmp"]] == [(3, 13)]
    assert flows[7003]["syn_in"] >= 1 and flows[7003]["syn_out"] == 0 and not flows[7003]["rst"]
    assert [r["by"] for r in flows[7004]["rst"]] == ["responder"] and flows[7004]["syn_out"] == 1
    assert (tmp_path / "capture.pcapng").stat().st_size < size / 2  # only the first 256 bytes of data packets


@pytest.mark.root
@needs_root
@needs_tools
def test_unwritable_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CaptureFailed, match="dumpcap did not start"):
        asyncio.run(Capture(tmp_path / "absent" / "c.pcapng").start())


@pytest.mark.root
@needs_root
@needs_tools
def test_a_file_that_grows_too_large_ends_the_capture_and_is_said(world: Namespaces, tmp_path: Path) -> None:
    async def scenario() -> None:
        capture = Capture(tmp_path / "capture.pcapng", netns=world.fd["router"], mode="full", limit=20_000)
        await capture.start()
        with socket_in(world.fd["client"], socket.AF_INET, socket.SOCK_DGRAM) as sender:
            async with asyncio.timeout(10):
                while capture.running:
                    sender.sendto(b"x" * 1400, (SERVER, 9))
                    await asyncio.sleep(0.005)
        with pytest.raises(CaptureFailed, match="limit of 20000 bytes"):
            await capture.stop()

    asyncio.run(scenario())


def test_stop_without_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CaptureFailed):
        asyncio.run(Capture(tmp_path / "c.pcapng").stop())


def test_free_space(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 0


def test_entering_what_is_no_namespace_is_an_error(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w") as file, pytest.raises(OSError):
        enter(file.fileno())
