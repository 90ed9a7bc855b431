# SPDX-License-Identifier: MIT
"""A disk alone (`vadplab fake disk`), contents of new disks, and the life and death of the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.storage.conftest import BIOS, MIB, ROOT, StorageProcess, first_line

Alone = Callable[..., tuple[str, "subprocess.Popen[bytes]"]]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: object) -> tuple[str, subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "fakes.storage", *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        started.append(process)
        return first_line(process), process

    yield begin
    for process in started:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()
    assert not list(tmp_path.glob("vadplab-disk-*"))


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: object) -> str:
    command = [sys.executable, "-m", "fakes.storage", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2 and not done.stdout
    return done.stderr


def test_an_image_over_tcp(alone: Alone, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    with open(image, "wb") as file:
        file.write(os.urandom(200_000))
        file.seek(5 * MIB + 4096)
        file.write(b"x" * 512 * 3)
    before = image.read_bytes()
    uri, _ = alone("--listen", "127.0.0.1:0", "--image", image)
    assert uri.startswith("nbd://127.0.0.1:") and uri.endswith("/live/disk/2000")
    info = json.loads(run("nbdinfo", "--json", "--no-content", uri))
    assert info["exports"][0]["export-size"] == len(before) and not info["exports"][0]["is_read_only"]
    assert run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, image).startswith("Images are identical")
    run("nbdcopy", uri, tmp_path / "copy.raw")
    assert (tmp_path / "copy.raw").read_bytes() == before
    allocated = [e for e in json.loads(run("nbdinfo", "--map", "--json", uri)) if e["type"] == 0]
    assert sum(e["length"] for e in allocated) <= 6 * 65536
    run("nbdcopy", tmp_path / "copy.raw", uri)
    assert image.read_bytes() == before


def test_files_on_a_unix_socket(alone: Alone, tmp_path: Path) -> None:
    """Real ext4, the same in every run, with holes where nothing is."""
    listings = []
    for number in range(2):
        folder = tmp_path / ("deep" * 25) / str(number)
        folder.mkdir(parents=True)
        uri, _ = alone("--unix", folder / "nbd.sock", "--size", "64MiB", "--contents", "files")
        copy = tmp_path / f"{number}.raw"
        with subprocess.Popen(["nbdcopy", "nbd+unix:///live/disk/2000?socket=nbd.sock", copy], cwd=folder) as copying:
            assert copying.wait(60) == 0
        assert uri == f"nbd+unix:///live/disk/2000?socket={folder}/nbd.sock"
        run("e2fsck", "-fn", copy)
        listings.append(run("debugfs", "-R", "ls -l data-2", copy))
        assert copy.stat().st_blocks * 512 < 24 * MIB
    assert listings[0] == listings[1] and "random-0002.bin" in listings[0]


def test_new_disks_of_a_vm_hold_files(storage: StorageProcess, tmp_path: Path) -> None:
    storage.make_vm(sizes=(48 * MIB, 32 * MIB), contents="files")
    for key in (2000, 2001):
        run("nbdcopy", storage.uri(f"live/web/{key}"), tmp_path / f"{key}.raw")
        run("e2fsck", "-fn", tmp_path / f"{key}.raw")
    names = run("debugfs", "-R", "ls -p", tmp_path / "2000.raw")
    assert "/data-0/" in names
    assert 64 * MIB < 256 * MIB - 24 * MIB < storage.call("datastore.info")["free"] < 256 * MIB - MIB
    assert not list(storage.state.glob("contents-*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--listen", "127.0.0.1:0"), "either --image FILE or --size SIZE"),
        (("--listen", "nonsense", "--size", "1MiB"), "not an address"),
        (("--listen", "127.0.0.1:0", "--size", "many"), "not a size"),
        (("--listen", "127.0.0.1:0", "--size", "100B"), "multiple of 512"),
        (("--listen", "127.0.0.1:0", "--image", "/none"), "no image"),
        (("--unix", "/none/at/all", "--size", "1MiB"), "no folder"),
        (("--name", "x"), "needs --state"),
        ((), "needs --name"),
        (("--name", "x", "--state", "/tmp", "--fabric", "/none", "--capacity", "1MiB"), "no folder"),
    ],
)
def test_bad_command_lines(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(*arguments)


def test_a_second_service_is_refused_and_the_first_goes_on(storage: StorageProcess) -> None:
    storage.make_vm()
    common = ("--state", storage.state, "--fabric", storage.fabric, "--capacity", "256MiB")
    assert "in use by another" in refused("--name", "datastore1", *common)
    assert storage.connect("live/web/2000").get_size() == 16 * MIB


def test_wrong_state_folders(storage: StorageProcess) -> None:
    storage.stop()
    for name, capacity, says in (
        ("other", "256MiB", "holds datastore datastore1"),
        ("datastore1", "1MiB", "cannot shrink"),
    ):
        command = [sys.executable, "-m", "fakes.storage", "--name", name, "--state", str(storage.state)]
        command += ["--fabric", str(storage.fabric), "--capacity", capacity]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 2 and says in done.stderr and not done.stdout
        assert len(done.stderr.splitlines()) == 1
    storage.start()


def test_everything_is_there_after_a_restart(storage: StorageProcess) -> None:
    storage.make_vm()
    storage.connect("live/web/2000").pwrite(b"kept" * 128, 0)
    made = storage.call("snapshot.create", vm="web", name="n", description="mark 42")
    storage.call("snapshot.label", vm="web", id=made["id"], ref="snapshot-9")
    storage.call("vm.power", vm="web", on=True)
    before, info = storage.call("vm.get", vm="web"), storage.call("datastore.info")
    assert storage.stop() == 0
    assert list(storage.fabric.iterdir()) == []
    for stray in ("contents-x", "chains/half-made", "chains/web"):
        (storage.state / stray).mkdir(exist_ok=True)
        (storage.state / stray / "2000-77.map").write_bytes(b"left by a kill")
    storage.start()
    assert not list(storage.state.rglob("2000-77.map")) and not (storage.state / "chains" / "half-made").exists()
    after = storage.call("vm.get", vm="web")
    assert after == before and after["snapshots"][0]["ref"] == "snapshot-9"
    assert storage.call("datastore.info") == info
    assert bytes(storage.connect("live/web/2000").pread(8, 0)) == b"keptkept"
    record = json.loads((storage.state / "truth" / "web" / f"{made['id']}.json").read_text())
    assert record["description"] == "mark 42" and record["disks"][0]["digests"] == f"{made['id']}-2000.sha256"


def test_sigterm_ends_it_while_clients_stay(storage: StorageProcess) -> None:
    storage.make_vm()
    handle = storage.connect("live/web/2000")
    handle.pwrite(b"x" * 512, 0)
    assert storage.stop() == 0


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "fabric").mkdir()
    script = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-m', 'fakes.storage', *sys.argv[1:]], stdout=subprocess.PIPE)\n"
        "p.stdout.readline()\nprint(p.pid, flush=True)\nsys.stdin.read()\n"
    )
    arguments = [
        "--name",
        "d",
        "--state",
        str(tmp_path / "s"),
        "--fabric",
        str(tmp_path / "fabric"),
        "--capacity",
        "1MiB",
    ]
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child = int(first_line(parent))
    stat = Path(f"/proc/{child}/stat")
    assert stat.exists()
    parent.kill()
    parent.wait(10)
    deadline = time.monotonic() + 10
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for pipe in (parent.stdin, parent.stdout):
        if pipe:
            pipe.close()
    again = StorageProcess(tmp_path)
    again.state, again.capacity = tmp_path / "s2", "16MiB"
    again.start()
    again.call("vm.create", vm="v", uuid=BIOS, disks=[{"key": 2000, "size": MIB, "file": "v/v.vmdk"}])
    again.stop()
