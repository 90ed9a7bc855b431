# SPDX-License-Identifier: MIT
"""A guest on real storage: what it shows, how it freezes, what is left of it. Needs root."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from fakes.core.fabric import FabricError, connect
from fakes.linux_guest import ledger
from tests.fakes.linux_guest.site import ADDRESS, PASSWORD, Site, booked, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts, loop devices and pid namespaces need root"),
    pytest.mark.skipif(not shutil.which("nbdfuse"), reason="nbdfuse is missing (libnbd-bin)"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="no loop devices here"),
]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_what_the_guest_sees(site: Site) -> None:
    marker = site.folder / "host-only"
    marker.write_text("x")
    site.boot()
    mounts = [line.split() for line in site.read("cat /proc/mounts").splitlines()]
    block = [m for m in mounts if m[0].startswith("/dev/")]
    assert [(m[1], m[2]) for m in block] == [("/", "ext4")], "a freeze of all disks must meet the guest's alone"
    assert {m[1]: m[2] for m in mounts}["/run"] == "tmpfs"
    processes = [int(word) for word in site.read("ls /proc").split() if word.isdigit()]
    assert 1 in processes and len(processes) < 12
    assert site.read("hostname").strip() == "lin"
    assert site.read("id -u; echo $LOGNAME").split() == ["0", "backup"]
    denied = site.ssh(
        f"ls {marker}", "touch /usr/bin/new", "ls /work /boot /opt/*", "mknod /dev/sda b 8 0", "fsfreeze -f /usr",
        "fsfreeze -f /run", "fsfreeze -f /etc", "fsfreeze -u /", "echo b > /proc/sys/kernel/sysrq",
    )  # fmt: skip
    assert [d.exit_status for d in denied if d.exit_status == 0] == [], [d.command for d in denied]
    assert PASSWORD not in site.read("cat /proc/*/cmdline | tr '\\0' ' '")
    assert PASSWORD not in Path(f"/proc/{site.guest_pid()}/cmdline").read_text()
    assert site.record() == []
    sums = site.read("cd /srv/documents && sha256sum -c SHA256SUMS")
    assert sums.count("OK") == 40
    assert site.read("echo one two | awk '{print $2}'").strip() == "two"  # through /etc/alternatives


def test_logins(site: Site) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    host = asyncssh.generate_private_key("ssh-ed25519")
    (site.folder / "key.pub").write_bytes(key.export_public_key())
    host.write_private_key(site.folder / "host")
    site.boot("--authorized-key", site.folder / "key.pub", "--host-key", site.folder / "host")
    with pytest.raises(asyncssh.PermissionDenied):
        site.ssh("true", password="wrong")
    with pytest.raises(asyncssh.PermissionDenied):
        site.ssh("true", username="root")
    trusted = ([host.convert_to_public()], [], [])
    (done,) = site.ssh("exit 3", password=None, client_keys=[key], known_hosts=trusted)
    assert done.exit_status == 3


def test_freeze_stalls_the_writer_and_is_recorded(site: Site) -> None:
    site.boot()
    eventually(lambda: booked(site) > 3)
    assert site.ssh("fsfreeze -f /")[0].exit_status == 0
    assert site.fabric_call("tools.state")["frozen"] is True
    before = booked(site)
    time.sleep(0.4)  # the time for which the writer must stand still, many bookings long
    assert booked(site) <= before + 1
    assert site.ssh("touch /run/tmpfs-can-be-written", "fsfreeze -f /")[1].exit_status == 1
    assert site.ssh("fsfreeze -u /")[0].exit_status == 0
    eventually(lambda: booked(site) > before + 5)
    assert json.loads(site.read("cat /run/guest/ledger.json"))["slowest"] >= 0.4
    events = [(e["event"], e["mount"], e["by"]) for e in site.record()]
    assert events == [("frozen", "/", "backup"), ("thawed", "/", "backup")]
    first, second = site.record()
    assert second["mono"] - first["mono"] > 400e6 and second["utc"] > first["utc"]


def test_the_fabric_thaws(site: Site) -> None:
    site.boot()
    assert site.fabric_call("guest.thaw") == {"thawed": False}
    site.read("fsfreeze -f /")
    assert site.fabric_call("guest.thaw") == {"thawed": True}
    before = booked(site)
    eventually(lambda: booked(site) > before)
    assert [e["by"] for e in site.record()] == ["backup", "tools"]
    with pytest.raises(FabricError):
        site.fabric_call("guest.format")


def _export(site: Site, frozen: str, target: Path) -> None:
    """Copies a frozen disk file of storage."""
    import nbd

    handle = nbd.NBD()
    handle.set_export_name(site.storage.call("disk.resolve", path=frozen, write=False)["export"])
    handle.connect_socket(connect(site.fabric / "nbd-datastore1.sock", 10).detach())
    with target.open("wb") as image:
        for offset in range(0, handle.get_size(), 1 << 20):
            image.write(handle.pread(1 << 20, offset))
    handle.shutdown()


@pytest.mark.parametrize("freeze", [True, False], ids=["frozen", "hot"])
def test_a_snapshot_holds_a_whole_ledger(site: Site, freeze: bool) -> None:
    site.boot()
    eventually(lambda: booked(site) > 20)
    if freeze:
        site.read("fsfreeze -f /")
    before = booked(site)
    snapshot = site.storage.call("snapshot.create", vm="lin", name="backup", description="")
    if freeze:
        site.read("fsfreeze -u /")
    eventually(lambda: booked(site) > before + 5)  # writes go on, into the delta
    image = site.folder / "copy.img"
    _export(site, snapshot["disks"][0]["frozen"], image)
    header = subprocess.run(["dumpe2fs", "-h", str(image)], capture_output=True, text=True, check=True).stdout
    features = next(line for line in header.splitlines() if line.startswith("Filesystem features"))
    assert ("needs_recovery" in features) is not freeze
    if not freeze:
        subprocess.run(["e2fsck", "-fy", str(image)], capture_output=True)
    clean = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, text=True)
    assert clean.returncode == 0, clean.stdout
    for name in ("ledger.db", "ledger.db-wal"):
        subprocess.run(
            ["debugfs", "-R", f"dump /var/lib/ledger/{name} {site.folder / name}", str(image)],
            check=True, capture_output=True,
        )  # fmt: skip
    result = ledger.check(site.folder / "ledger.db")
    assert result["ok"], result
    assert result["bookings"] >= before - (0 if freeze else 1)


def test_shutdown_is_clean_and_the_next_boot_goes_on(site: Site) -> None:
    site.boot()
    site.read("echo kept > /root/note; sync")
    key = site.read("cat /etc/ssh/ssh_host_key.pub")
    first = booked(site)
    site.read("nohup sleep 300 > /root/left-running 2>&1 < /dev/null &")
    site.read("fsfreeze -f /")
    assert site.shut_down() == 0
    assert site.free()
    assert [e["by"] for e in site.record()] == ["backup", "shutdown"]
    image = site.folder / "off.img"
    site.storage.call("vm.power", vm="lin", on=False)
    _export(site, "lin/lin.vmdk", image)
    assert subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True).returncode == 0
    site.storage.call("vm.power", vm="lin", on=True)
    site.boot()
    assert site.read("cat /root/note").strip() == "kept"
    assert site.read("cat /etc/ssh/ssh_host_key.pub") == key
    assert booked(site) >= first


def test_sigkill_of_the_guest_while_frozen(site: Site) -> None:
    """Its own guardian is enough while the pid namespace lives on."""
    site.boot()
    site.read("fsfreeze -f /")
    os.kill(site.guest_pid(), signal.SIGKILL)
    eventually(site.free)
    assert [e["by"] for e in site.record()] == ["backup", "guardian"]
    eventually(lambda: not list(site.fabric.glob("guardian-*")) or True)
    site.boot()
    assert booked(site) > 0


def test_sigkill_of_everything_while_frozen(site: Site, tmp_path: Path) -> None:
    """Storage, nbdfuse, guest: all killed at once with their pid namespace, writers waiting in the frozen disk."""
    path = tmp_path / "guardian.sock"
    guardian = subprocess.Popen(
        [sys.executable, "-m", "fakes.linux_guest.guardian", "--socket", str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert guardian.stdin is not None and guardian.stdout is not None
    assert guardian.stdout.readline().startswith("ready")
    site.boot(guardian=path)
    names = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
    inmates = [int(name) for name in names if _namespace(name) == _namespace(str(site.holder))]
    assert len(inmates) >= 4
    site.read("fsfreeze -f /")
    blocked = booked(site)
    assert blocked > 0
    guardian.stdin.close()  # the lab is gone: the guardian may end, but only when nothing is left to guard
    os.kill(site.holder, signal.SIGKILL)
    eventually(site.free)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inmates if not _zombie(pid)))
    assert guardian.wait(20) == 0
    guardian.stdout.close()
    assert [e["by"] for e in site.record()] == ["backup", "guardian"]
    assert str(site.state) not in Path("/proc/mounts").read_text()


@pytest.mark.parametrize("victim", ["everything", "guest"])
def test_sigkill_while_the_guest_writes(site: Site, victim: str) -> None:
    """Dirty pages everywhere: nobody waits for a disk that will not answer any more."""
    for _ in range(1 if victim == "everything" else 3):
        site.boot()
        names = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
        inmates = [int(name) for name in names if _namespace(name) == _namespace(str(site.holder))]
        writer = "while :; do dd if=/dev/urandom of=/root/bulk bs=256k count=80 conv=notrunc 2>/dev/null; done"
        site.read(f"setsid sh -c '{writer}' >/dev/null 2>&1 </dev/null & sleep 0.3")
        os.kill(site.holder if victim == "everything" else site.guest_pid(), signal.SIGKILL)
        eventually(site.free, 30)
    if victim == "everything":
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inmates if not _zombie(pid)), 30)
    assert str(site.state) not in Path("/proc/mounts").read_text()


def _namespace(pid: str) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_disk_with_something_else_is_not_formatted(site: Site) -> None:
    import nbd

    handle = nbd.NBD()
    handle.set_export_name("live/lin/2000")
    handle.connect_socket(connect(site.fabric / "nbd-datastore1.sock", 10).detach())
    handle.pwrite(b"precious" * 64, 4096)
    handle.shutdown()
    with pytest.raises(AssertionError, match="said nothing"):
        site.boot()
    assert site.guest is not None
    assert site.guest.wait(20) == 1


SCRIPTS = Path(__file__).parents[3] / "engine" / "guest" / "scripts"


def test_the_engines_own_scripts_freeze_only_the_guest(site: Site) -> None:
    site.boot()
    for name in ("pre-freeze", "post-thaw"):
        text = (SCRIPTS / f"{name}.sh").read_text()
        site.read(f"mkdir -p /run/session && cat > /run/session/{name} <<'END'\n{text}\nEND")
    (frozen,) = site.ssh("sh /run/session/pre-freeze")
    assert (frozen.exit_status, frozen.stderr) == (0, "")
    assert str(frozen.stdout).strip() == "frozen: /"
    (thawed,) = site.ssh("sh /run/session/post-thaw")
    assert (thawed.exit_status, thawed.stderr) == (0, "")
    assert [(e["event"], e["mount"]) for e in site.record()] == [("frozen", "/"), ("thawed", "/")]


def test_sftp_and_exec_see_one_root(site: Site) -> None:
    site.boot()

    async def scene() -> tuple[str, list[str]]:
        async with asyncssh.connect(
            sock=site.connect(), username="backup", password=PASSWORD, known_hosts=None, config=None, agent_path=None
        ) as connection:
            async with connection.start_sftp_client() as sftp:
                async with sftp.open("/run/uploaded", "w") as file:
                    await file.write("by sftp")
                names = sorted(str(name) for name in await sftp.listdir("/"))
            return str((await connection.run("cat /run/uploaded")).stdout), names

    text, names = asyncio.run(scene())
    assert text == "by sftp"
    assert {"etc", "usr", "srv"} <= set(names) and "boot" not in names


@pytest.mark.parametrize("victim", ["nbdfuse", "storage"])
@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
def test_a_guest_that_lost_its_disk_ends(site: Site, victim: str, frozen: bool) -> None:
    guest = site.boot()
    if frozen:
        site.read("fsfreeze -f /")
    if victim == "storage":
        os.kill(_children(site.storage_process.pid)[0], signal.SIGKILL)
        os.kill(site.guest_pid(), signal.SIGTERM)
    else:
        (nbdfuse,) = [pid for pid in _children(site.guest_pid()) if _name(pid) == "nbdfuse"]
        os.kill(nbdfuse, signal.SIGKILL)
    assert guest.wait(40) in ((1,) if victim == "nbdfuse" else (0, 1))  # a shutdown may go well without storage, or not
    eventually(site.free)
    if frozen:
        assert [e["event"] for e in site.record()][:2] == ["frozen", "thawed"]


@pytest.fixture
def users_site(tmp_path: Path) -> Iterator[Site]:
    """In a user namespace of an ordinary user, with one mapped id."""
    readable = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "--user", "--map-root-user",
         sys.executable, "-c", "import fakes.linux_guest.command"],
        capture_output=True, text=True,
    )  # fmt: skip
    if readable.returncode:
        pytest.skip(f"no user namespaces here, or this folder is private: {readable.stderr[-100:]}")
    (tmp_path / "site").mkdir()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
            folder.chmod(folder.stat().st_mode | 0o011)
    made = Site(tmp_path / "site", ordinary_user=True)
    try:
        yield made
    finally:
        made.close()


def test_without_real_root(users_site: Site) -> None:
    site = users_site
    site.boot()
    assert site.read("hostname; id -u").split() == ["lin", "0"]
    assert "OK" in site.read("cd /srv/documents && sha256sum -c SHA256SUMS")
    done = site.ssh("exit 7", "ls /work /boot", "echo out; echo err >&2", "head -c 300000 /dev/zero | wc -c")
    assert [d.exit_status for d in done] == [7, 2, 0, 0]
    assert (done[2].stdout, done[2].stderr, str(done[3].stdout).strip()) == ("out\n", "err\n", "300000")
    assert site.ssh("kill -KILL $$")[0].exit_status != 0
    with pytest.raises(asyncssh.PermissionDenied):
        site.ssh("true", password="wrong")
    for name in ("pre-freeze", "post-thaw"):
        text = (SCRIPTS / f"{name}.sh").read_text()
        site.read(f"mkdir -p /run/session && cat > /run/session/{name} <<'END'\n{text}\nEND")
    assert site.read("sh /run/session/pre-freeze").strip() == "frozen: nothing"
    assert site.record() == []
    before = booked(site)
    eventually(lambda: booked(site) > before)
    assert site.fabric_call("tools.state")["addresses"] == [ADDRESS]
    site.storage.call("vm.power", vm="lin", on=False)
    image = site.folder / "copy.img"
    _export(site, "lin/lin.vmdk", image)
    assert subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True).returncode == 0
    subprocess.run(
        ["debugfs", "-R", f"dump /var/lib/ledger/ledger.db {site.folder / 'ledger.db'}", str(image)],
        check=True, capture_output=True,
    )  # fmt: skip
    assert ledger.check(site.folder / "ledger.db")["bookings"] == 200
    assert site.shut_down() == 0
    assert not list((site.state / "work").iterdir())


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
