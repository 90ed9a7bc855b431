# SPDX-License-Identifier: MIT
"""A real recording: engine dialer, nftables, dumpcap, NFLOG and conntrack in namespaces, then the verdicts."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.dialer import Dialer
from engine.errors import ConnectError, InputError
from engine.events import EventLog
from firewall_rules.load import load_policy
from lab.judge.judge import judge
from lab.judge.report import Report
from lab.observe.errors import NoSpace, RunBusy
from lab.observe.namespaces import enter
from lab.observe.recorder import Recorder, Sources
from lab.observe.runs import Limits, RunNameInvalid
from lab.realise.firewall import Firewall
from tests.lab.realise.routed import CLIENT, OTHER, SERVER, WORLD, Routed, routed

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(shutil.which("dumpcap") is None, reason="needs dumpcap"),
]
TOPOLOGY = """
name: small
network: 10.9.0.0/16
zones: [all]
hosts:
  proxy-1: {role: proxy, zone: all, address: 10.9.1.10/24}
  esxi-1: {role: esxi, zone: all, address: 10.9.2.10/24}
  repository-1: {role: repository, zone: all, address: 10.9.3.10/24}
  router: {role: router, zone: all}
"""


class Small:
    """A lab folder of three hosts, its firewall and its recorder."""

    def __init__(self, world: Routed, folder: Path, **recorder: Any) -> None:
        self.world = world
        self.folder = folder
        for host in (CLIENT, SERVER, OTHER):
            (folder / "hosts" / host / "var").mkdir(parents=True)
        (folder / "fakes" / "vcenter").mkdir(parents=True)
        self.journal = folder / "fakes" / "vcenter" / "journal.jsonl"
        self.journal.write_text('{"utc": "2026-01-01T00:00:00.000000Z", "method": "Old"}\n')
        (folder / "topology.yaml").write_text(TOPOLOGY)
        self.firewall = Firewall(world.router)
        self.recorder = Recorder(
            folder / "runs",
            netns=world.router,
            firewall=self.firewall,
            sources=Sources(folder),
            topology=folder / "topology.yaml",
            **recorder,
        )

    async def dial(self, host: str, target: str, port: int, step: str, size: int = 0, timeout: float = 0.6) -> str:
        """The engine's dialer inside a host; `size` bytes go there and come back."""
        address = self.world.address(target)

        def work() -> str:
            events = EventLog(
                self.folder / "hosts" / host / "var" / "events.jsonl", host=host, process="data mover", session="s1"
            )
            try:
                made = Dialer(events).connect(address, port, step=step, name=target, timeout=timeout)
            except ConnectError as exc:
                return exc.symptom
            finally:
                events.close()
            with made.sock as sock:
                _echoed(sock, size)
            return "open"

        return await _in_namespace(self.world.namespaces[host], work)


async def _in_namespace(netns: int, work: Callable[[], str]) -> str:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()

    def run() -> None:
        try:
            enter(netns)
            result = work()
            loop.call_soon_threadsafe(done.set_result, result)
        except BaseException as exc:
            loop.call_soon_threadsafe(done.set_exception, exc)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wait_for(done, 20)


def _echoed(sock: socket.socket, size: int) -> None:
    sender = threading.Thread(target=sock.sendall, args=(b"x" * size,))
    sender.start()
    left = size
    while left:
        left -= len(sock.recv(1 << 16))
    sender.join()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    with routed() as world:
        world.answer(SERVER, 902)
        world.answer(OTHER, 2500)
        world.answer(CLIENT, 2500)
        yield Small(world, tmp_path / "lab")


def recorded(small: Small, traffic: Callable[[Small], Any], **begin: Any) -> tuple[Report, Path]:
    """Records `traffic` and judges it."""

    async def scenario() -> Path:
        await small.firewall.apply(load_policy("default-12.3"), WORLD)
        begun = await small.recorder.control("begin", {"run": "r1", "kind": "job", **begin})
        with pytest.raises(RunBusy):
            await small.recorder.control("run.begin", {"run": "r2", "kind": "job"})
        await traffic(small)
        ended = await small.recorder.control("run.end", {"run": "r1", "session": "s1"})
        assert ended["problems"] == [] and ended["folder"] == begun["folder"]
        await small.firewall.close()
        return Path(ended["folder"])

    folder = asyncio.run(scenario())
    return judge(folder), folder


def test_five_witnesses_agree_on_real_packets(small: Small) -> None:
    size = 700_000

    async def traffic(lab: Small) -> None:
        lab.journal.open("a").write('{"utc": "2026-11-25T07:00:00.000000Z", "method": "New"}\n')
        assert await lab.dial(CLIENT, SERVER, 902, "19", size, timeout=5) == "open"
        assert await lab.dial(CLIENT, OTHER, 2500, "7", 10, timeout=5) == "open"
        assert await lab.dial(CLIENT, OTHER, 2600, "7") == "refused"  # nobody listens there
        for how, symptom in (("drop", "timed out"), ("reset", "refused"), ("icmp", "prohibited")):
            await lab.firewall.control("block", {"row": "H5", "with": how})
            assert await lab.dial(CLIENT, SERVER, 902, "19") == symptom
            await lab.firewall.control("reset", {})
        assert await lab.dial(OTHER, CLIENT, 2500, "7") == "timed out"  # the reverse direction has no rule

    report, folder = recorded(small, traffic)
    assert report.inconsistent == []
    flows = [f for f in report.flows if f.attempted]
    assert [(f.responder, f.port, f.row, f.rule, f.verdict.value, f.decided_by) for f in flows] == [
        (SERVER, 902, "H5", "H5", "allowed", "firewall"),
        (OTHER, 2500, "D1", "D1", "allowed", "firewall"),
        (OTHER, 2600, "D1", "D1", "refused", "responder"),
        (SERVER, 902, "H5", "block-1", "timed out", "firewall"),
        (SERVER, 902, "H5", "block-2", "refused", "firewall"),
        (SERVER, 902, "H5", "block-3", "prohibited", "firewall"),
        (CLIENT, 2500, "D2", "default", "timed out", "firewall"),
    ]
    assert all(f.predicted == ("allowed" if f.decided_by == "responder" else f.verdict.value) for f in flows)
    first = flows[0]
    assert first.witnesses == dict.fromkeys(("event", "counter", "packets", "socket"), "allowed")
    assert (first.payload_sent, first.payload_received) == (size, size)
    assert first.bytes_source == "connection tracking" and first.sent > size
    assert not report.foreign
    assert report.evidence.capture.complete
    assert json.loads((folder / "vcenter" / "journal.jsonl").read_text())["method"] == "New"
    assert {i.id: i.state for i in report.invariants}["I2"] == "held"
    assert report.exit_code == 1, "902 without a ticket breaks I4"


def test_tshark_reads_the_annotated_capture(small: Small) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("needs tshark")

    async def traffic(lab: Small) -> None:
        await lab.dial(CLIENT, SERVER, 902, "19", 200_000, timeout=5)
        await lab.firewall.control("block", {"row": "H5", "with": "reset"})
        await lab.dial(CLIENT, SERVER, 902, "19")

    _, folder = recorded(small, traffic, capture="full")

    def shown(query: str) -> list[str]:
        command = ["tshark", "-r", str(folder / "capture.pcapng"), "-Y", query, "-T", "fields", "-e", "tcp.dstport"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert shown("_ws.malformed") == []
    assert "902" in shown('frame.comment contains "rule=block-1 row=H5 step=19 verdict=refused"')
    # The SYN coming in and leaving; a reset of that connection by the block's cut may carry the comment too.
    assert len(shown('frame.comment contains "verdict=allowed" and tcp.flags.syn == 1')) == 2


def test_a_second_judging_says_the_same(small: Small) -> None:
    async def traffic(lab: Small) -> None:
        await lab.dial(CLIENT, OTHER, 2500, "7", 10, timeout=5)

    first, folder = recorded(small, traffic)
    assert judge(folder).to_flows() == first.to_flows()


def test_foreign_connection_is_listed(small: Small) -> None:
    async def traffic(lab: Small) -> None:
        await lab.dial(CLIENT, OTHER, 2500, "7", 10, timeout=5)
        assert await lab.world.connect(SERVER, CLIENT, 9392) == "timed out"

    report, _ = recorded(small, traffic)
    assert [(f.initiator, f.responder, f.port, f.verdict.value) for f in report.foreign] == [
        (SERVER, CLIENT, 9392, "timed out")
    ]
    assert {i.id: i.state for i in report.invariants}["I2"] == "broken" and report.exit_code == 1


def test_what_can_not_begin_leaves_nothing(small: Small) -> None:
    async def scenario() -> None:
        await small.firewall.apply(load_policy("default-12.3"), WORLD)
        with pytest.raises(RunNameInvalid):
            await small.recorder.control("begin", {"run": "../x", "kind": "job"})
        with pytest.raises(InputError):
            await small.recorder.control("begin", {"kind": "job"})
        with pytest.raises(InputError):
            await small.recorder.control("begin", {"run": "r1", "capture": "some"})
        with pytest.raises(InputError):
            await small.recorder.control("end", {"run": "r1"})
        tight = Recorder(
            small.folder / "runs",
            netns=small.world.router,
            firewall=small.firewall,
            sources=Sources(small.folder),
            topology=small.folder / "absent.yaml",
            limits=Limits(spare=1 << 62),
        )
        with pytest.raises(NoSpace):
            await tight.control("begin", {"run": "r1", "kind": "job"})
        assert list((small.folder / "runs").iterdir()) == []
        await small.recorder.control("begin", {"run": "r1", "kind": "job"})
        await small.recorder.close()
        assert (small.folder / "runs" / "r1" / "counters-after.json").is_file()
        await small.firewall.close()

    asyncio.run(scenario())


def test_an_observer_that_fails_does_not_take_the_others_along(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    soap = small.folder / "fakes" / "esxi-1" / "soap.jsonl"
    soap.parent.mkdir()

    async def scenario() -> dict[str, Any]:
        await small.firewall.apply(load_policy("default-12.3"), WORLD)
        await small.recorder.begin("job-1", "job", session="s1")
        recording = small.recorder._current
        assert recording is not None
        for observer, words in ((recording.log, "log broke"), (recording.tracking, "tracking broke")):
            stop = observer.stop

            async def broken(stop: Any = stop, words: str = words) -> None:
                await stop()
                raise OSError(words)

            monkeypatch.setattr(observer, "stop", broken)

        async def no_counters() -> None:
            raise OSError("counters broke")

        monkeypatch.setattr(small.firewall, "counters", no_counters)
        soap.write_text('{"method": "Login"}\n')
        ended = await small.recorder.end("job-1")
        monkeypatch.undo()
        await small.firewall.close()
        return ended

    ended = asyncio.run(scenario())
    assert [p.partition(":")[0] for p in ended["problems"]] == ["counters", "firewall log", "connection tracking"]
    folder = Path(ended["folder"])
    about = json.loads((folder / "run.json").read_text())
    assert about["ended"] and about["problems"] == ended["problems"]
    assert about["capture"]["flushed"] and "error" not in about["capture"], (
        "the capture was ended in order all the same"
    )
    assert json.loads((folder / "nflog.jsonl").read_text().splitlines()[-1])["lost"] >= 1
    assert json.loads((folder / "conntrack.jsonl").read_text().splitlines()[-1]) == {"lost": 1}
    assert (folder / "esxi-1" / "soap.jsonl").read_text() == '{"method": "Login"}\n'
    assert small.recorder.current is None
