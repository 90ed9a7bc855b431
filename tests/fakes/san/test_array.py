# SPDX-License-Identifier: MIT
"""The array by foreign initiators: libiscsi's tools and QEMU."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fakes.core.fabric import FabricClient, FabricError
from fakes.san.options import IQN
from tests.fakes.san.conftest import NAA, SECRET, Reader, SanProcess, initiator, loopback
from tests.fakes.storage.conftest import ROOT, StorageProcess

pytestmark = pytest.mark.root
Start = Callable[..., SanProcess]


@contextmanager
def reader(url: str) -> Iterator[Reader]:
    made = Reader(url)
    try:
        yield made
    finally:
        made.close()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def secret_file(tmp_path: Path) -> tuple[str, ...]:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    return ("--chap", "proxy1", "--chap-password-file", str(file))


def test_a_lun_and_its_identity(start: Start, lun: Path) -> None:
    san = start(lun)
    portal = f"{san.address}:3260"
    assert san.ready == {
        "ready": "san",
        "portal": portal,
        "target": IQN,
        "luns": [{"name": "datastore1", "lun": 1, "naa": NAA}],
        "pid": san.process.pid if san.process else None,
    }
    code, said = initiator("iscsi-ls", "-s", f"iscsi://{portal}")
    assert code == 0 and f"Target:{IQN} Portal:{portal},1" in said and "Lun:1    Type:DIRECT_ACCESS" in said
    _, said = initiator("iscsi-inq", "-e", "1", "-c", "131", san.url())
    assert NAA in said and "Designator Type:(3) NAA" in said
    _, said = initiator("iscsi-inq", "-e", "1", "-c", "128", san.url())
    assert NAA.removeprefix("naa.") in said
    _, said = initiator("iscsi-inq", san.url())
    assert "Vendor:VADPLAB" in said and "Product:SAN LUN" in said
    _, said = initiator("qemu-img", "info", "--output=json", "-f", "raw", san.url())
    assert json.loads(said)["virtual-size"] == 8 << 20
    info = san.call("lun.info")
    assert info == {
        **{"name": "datastore1", "lun": 1, "naa": NAA, "size": 8 << 20, "vendor": "VADPLAB", "model": "SAN LUN"},
        **{"target": IQN, "portal": portal, "chap": False, "initiators": ["ALL"], "online": True, "refusing": False},
    }


def test_all_bytes_and_no_writes(start: Start, lun: Path, tmp_path: Path) -> None:
    san = start(lun)
    before = lun.read_bytes()
    copy = tmp_path / "copy.raw"
    code, said = initiator("qemu-img", "convert", "-f", "raw", "-O", "raw", san.url(), str(copy))
    assert code == 0, said
    assert copy.read_bytes() == before
    code, said = initiator("qemu-io", "-f", "raw", "-c", "write 0 512", san.url())
    assert code != 0 and "write protected" in said
    assert lun.read_bytes() == before


def test_chap(start: Start, lun: Path, tmp_path: Path) -> None:
    san = start(lun, *secret_file(tmp_path))
    assert san.call("lun.info")["chap"] is True
    for chap in (None, ("proxy1", "another-secret"), ("nobody", SECRET)):
        code, said = initiator("iscsi-inq", san.url(), chap=chap)
        assert code != 0 and "Authentication failure" in said
    code, said = initiator("iscsi-inq", san.url(), chap=("proxy1", SECRET))
    assert code == 0 and "Vendor:VADPLAB" in said
    code, said = initiator("qemu-img", "info", "-f", "raw", san.url("proxy1", SECRET))
    assert code == 0, said
    assert SECRET.encode() not in b"".join(f.read_bytes() for f in (tmp_path / "array0" / "san").glob("*.log"))


def test_initiators(start: Start, lun: Path) -> None:
    denied = start(lun, "--initiator", "192.0.2.0/24", "--initiator", "192.0.2.7")
    allowed = start(lun, "--initiator", "192.0.2.0/24", "--initiator", "127.0.0.0/8")
    code, said = initiator("iscsi-inq", denied.url())
    assert code != 0 and "Target not found" in said, said
    _, said = initiator("iscsi-ls", "-s", f"iscsi://{denied.address}")
    assert IQN not in said
    code, said = initiator("iscsi-inq", allowed.url())
    assert code == 0, said


def test_a_lun_that_goes_under_a_reader(start: Start, lun: Path) -> None:
    san = start(lun)
    with reader(san.url()) as session:
        assert session.read(0)
        assert san.call("lun.offline", on=True)["online"] is False
        assert not session.read(1 << 20)
        code, said = initiator("iscsi-ls", "-s", f"iscsi://{san.address}")
        assert IQN in said and "Lun:1" not in said
        code, _ = initiator("iscsi-inq", san.url())
        assert code != 0
        assert san.call("lun.offline", on=True)["online"] is False
    assert san.call("lun.offline", on=False)["online"] is True
    assert san.call("lun.offline", on=False)["online"] is True
    _, said = initiator("iscsi-inq", "-e", "1", "-c", "131", san.url())
    assert NAA in said


def test_a_lun_goes_under_load(start: Start, lun: Path) -> None:
    """Commands are under way all the time: tgtd alone would not let it go."""
    os.truncate(lun, 64 << 20)
    san = start(lun)
    command = ["qemu-img", "bench", "-f", "raw", "-c", "10000000", "-d", "32", "-s", "65536", san.url()]
    load = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert until(lambda: len(san.call("sessions.list")) == 1)
        with pytest.raises(subprocess.TimeoutExpired):
            load.wait(0.5)
        assert san.call("lun.offline", on=True)["online"] is False
        assert load.wait(20) != 0
    finally:
        load.kill()
        load.communicate()
    assert san.call("lun.offline", on=False)["online"] is True
    assert initiator("iscsi-inq", san.url())[0] == 0


def test_logins_refused_and_sessions_dropped(start: Start, lun: Path) -> None:
    san = start(lun)
    assert san.call("sessions.list") == []
    with reader(san.url()) as session:
        assert session.read(0)
        (row,) = san.call("sessions.list")
        assert row["address"] == "127.0.0.1" and row["initiator"].startswith("iqn.")
        assert san.call("login.refuse", on=True)["refusing"] is True
        assert session.read(4096)
        code, said = initiator("iscsi-inq", san.url())
        assert code != 0 and "Target not found" in said
        assert san.call("sessions.drop") == {"dropped": 1}
    assert until(lambda: san.call("sessions.list") == [])
    assert san.call("login.refuse", on=False)["refusing"] is False
    assert initiator("iscsi-inq", san.url())[0] == 0
    for method, params, wanted in (
        ("lun.fly", {}, "unknown-method"),
        ("lun.offline", {}, "malformed"),
        ("login.refuse", {"on": "x"}, "malformed"),
    ):
        with pytest.raises(FabricError) as caught:
            san.call(method, **params)
        assert caught.value.code == wanted


def test_it_ends_under_a_session_and_leaves_nothing(start: Start, lun: Path) -> None:
    san = start(lun)
    tgtd = san.tgtd()
    assert len(tgtd) == 1
    with reader(san.url()) as session:
        assert session.read(0)
        assert san.stop() == 0
    assert not alive(tgtd[0])
    assert sorted(p.name for p in (san.home / "san").iterdir()) == ["tgtd.log"]
    assert not list(san.fabric.iterdir())
    san.start()  # the same portal and state, at once
    assert initiator("iscsi-inq", san.url())[0] == 0


def test_tgtd_dies_with_it(start: Start, lun: Path) -> None:
    san = start(lun)
    (tgtd,) = san.tgtd()
    assert san.stop(signal.SIGKILL) == -signal.SIGKILL
    assert until(lambda: not alive(tgtd))
    san.start()
    assert initiator("iscsi-inq", san.url())[0] == 0


def test_it_ends_when_tgtd_dies(start: Start, lun: Path) -> None:
    san = start(lun)
    os.kill(san.tgtd()[0], signal.SIGKILL)
    assert san.process and san.process.wait(10) == 1
    assert san.process.stderr and b"tgtd ended with -9" in san.process.stderr.read()


def test_a_frozen_chain_is_read_from_the_lun_by_its_map(start: Start, tmp_path: Path) -> None:
    """While the guest writes on, and a snapshot below is merged away."""
    storage = StorageProcess(tmp_path, "64MiB")
    storage.start()
    try:
        storage.make_vm()
        guest = storage.connect("live/web/2000")
        expected = bytearray(16 << 20)
        for number, at in enumerate((0, 3 << 20, 5 << 20, 3 << 20)):
            data = os.urandom(200_000)
            guest.pwrite(data, at + number * 1000)
            expected[at + number * 1000 : at + number * 1000 + len(data)] = data
            storage.call("snapshot.create", vm="web", name=str(number))
        frozen = storage.call("vm.get", vm="web")["snapshots"][-1]["disks"][0]["frozen"]
        layout = json.loads(base64.b64decode(storage.call("file.read", path=frozen.replace(".vmdk", "-map"))))
        san = start(Path(storage.call("datastore.info")["lun"]["path"]))
        for at in range(0, 8 << 20, 1 << 20):
            guest.pwrite(os.urandom(1 << 19), at)
        storage.call("snapshot.remove", vm="web", id=2)
        guest.pwrite(os.urandom(4 << 20), 8 << 20)
        image = tmp_path / "lun.copy"
        code, said = initiator("qemu-img", "convert", "-f", "raw", "-O", "raw", san.url(), str(image))
        assert code == 0, said
        found = bytearray(layout["size"])
        with open(image, "rb") as file:
            for at, length, where in layout["extents"]:
                found[at : at + length] = os.pread(file.fileno(), length, where)
        assert found == expected
    finally:
        storage.stop()


def test_a_portal_that_is_taken(start: Start, lun: Path, tmp_path: Path) -> None:
    """The other array has the same target and LUN: a login alone would not tell them apart."""
    san = start(lun)
    command = [*san.command, "--state", str(tmp_path / "another")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 2 and not run.stdout
    assert run.stderr == f"vadplab fake san: cannot serve {san.address} port 3260: Address already in use\n"
    assert initiator("iscsi-inq", san.url())[0] == 0
    assert san.call("lun.info")["online"] is True


def test_a_folder_that_is_taken(start: Start, lun: Path) -> None:
    san = start(lun)
    command = [*san.command, "--listen", loopback()]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 2 and run.stderr == f"vadplab fake san: {san.home / 'san'} is in use by another array\n"
    assert san.call("sessions.list") == []  # its control socket is still there


def test_several_datastores_on_one_array(start: Start, lun: Path, tmp_path: Path) -> None:
    second, naa = tmp_path / "second.img", NAA.replace("0", "f")
    second.write_bytes(b"2" * (1 << 20))
    san = start(lun, "--lun", str(second), "--naa", naa, "--name", "datastore2")
    _, said = initiator("iscsi-inq", "-e", "1", "-c", "131", san.url().removesuffix("1") + "2")
    assert naa in said and NAA not in said
    other = FabricClient(san.fabric / "san-datastore2.sock")
    assert other.call("lun.info")["lun"] == 2
    other.call("lun.offline", on=True)
    other.close()
    _, said = initiator("iscsi-ls", "-s", f"iscsi://{san.address}")
    assert "Lun:1 " in said and "Lun:2 " not in said


def test_a_signal_at_any_time_of_the_start(start: Start, lun: Path) -> None:
    san = start(lun)
    assert san.stop() == 0
    for delay in (0.05, 0.1, 0.15, 0.2, 0.3):
        process = subprocess.Popen(san.command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(delay)  # not in place of readiness: the instant is what is tried
        process.terminate()
        _, said = process.communicate(timeout=20)
        assert process.returncode in (0, -signal.SIGTERM), said
        assert not said
    san.start()  # nobody holds the portal
    assert initiator("iscsi-inq", san.url())[0] == 0
