# SPDX-License-Identifier: MIT
"""Whole labs: up, down, SIGKILL at every place, side by side, half-failed, interrupted."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.errors import LabFailed, LabNotRunning, LabRunning, RemoteLabError
from lab.realise import folders, lifecycle
from lab.realise.control import call
from lab.realise.mounts import CODE
from tests.lab.realise.labs import DEADLINE, LAUNCH, ROOT, Remains, eventually, needs_lab, run, running
from tests.processes import suspend

pytestmark = [pytest.mark.lab, needs_lab]


def test_up_status_down(tmp_path: Path) -> None:
    done: list[str] = []
    lab = folders.folder("test", tmp_path)
    status = lifecycle.up(lab, LAUNCH, progress=lambda event: done.append(event["done"]))
    try:
        remains = Remains(lab)
        assert done == ["hosts", "firewall", "links"]
        assert status["state"] == "up"
        assert status["mode"] == ("root" if ROOT else "user")
        assert [host["name"] for host in status["hosts"]][:2] == ["console", "backup-server"]
        assert call(lab.control_socket, "status")["hosts"] == status["hosts"]
        assert lab.state()["phase"] == "up"
        for path in (lab.topology_file, lab.policy_file, lab.inventory_file, lab.pki / "vcenter.pem"):
            assert path.stat().st_size > 0
        assert (lab.path.stat().st_mode & 0o777, lab.control_socket.stat().st_mode & 0o777) == (0o700, 0o600)
    finally:
        lifecycle.down(lab)
    remains.assert_gone()
    assert lab.state()["phase"] == "down"
    assert not lab.control_socket.exists()
    assert lab.policy_file.exists()


@pytest.mark.parametrize("victim", ["supervisor", "launcher", "caretaker and supervisor"])
def test_sigkill_leaves_nothing(tmp_path: Path, victim: str) -> None:
    with running(tmp_path) as lab:
        # A process that left its session and its parent behind: no death signal reaches it.
        run(lab, "proxy-1", "sh", "-c", "setsid sh -c 'sleep 300 & sleep 300' >/dev/null 2>&1 &")
        call(lab.control_socket, "spawn", host="esxi-1", name="sleeper", argv=["sleep", "300"], ready_timeout=None)
        remains = Remains(lab)
        eventually(lambda: len(remains.processes()) >= 5, "the stray processes do not start")
        for who in victim.split(" and "):
            os.kill(remains.pid(who), signal.SIGKILL)
        remains.assert_gone()
        with pytest.raises(LabNotRunning):
            call(lab.control_socket, "status")
    with running(tmp_path) as lab:
        assert run(lab, "console", "true")[0] == 0


def test_zygote_s_end_is_the_lab_s_end(tmp_path: Path) -> None:
    with running(tmp_path) as lab:
        remains = Remains(lab)
        _, zygote, _ = run(lab, "console", "sh", "-c", "echo $PPID")
        os.kill(remains.outer_pid(int(zygote)), signal.SIGKILL)
        remains.assert_gone()
        assert "the zygote has ended" in lab.supervisor_log.read_text()
        assert lab.state()["phase"] == "failed"


def test_two_labs_side_by_side(tmp_path: Path) -> None:
    connect = (
        "import socket\n"
        "s = socket.socket(); s.settimeout(5)\n"
        "try: s.connect(('10.77.6.10', 443)); print(s.recv(10).decode())\n"
        "except OSError as exc: print(type(exc).__name__)\n"
    )
    serve = (
        "import socket\n"
        "s = socket.create_server(('10.77.6.10', 443)); print('ready', flush=True)\n"
        "while True: c, _ = s.accept(); c.sendall(b'first'); c.close()\n"
    )
    with running(tmp_path, "one") as one, running(tmp_path, "two") as two:
        call(one.control_socket, "spawn", host="vcenter", name="web", argv=[sys.executable, "-c", serve])
        answers = [run(lab, "proxy-1", sys.executable, "-c", connect)[1].strip() for lab in (one, two)]
        assert answers == [b"first", b"ConnectionRefusedError"]
        gone = Remains(one)
        lifecycle.down(one)
        gone.assert_gone()
        assert run(two, "proxy-1", "true")[0] == 0


def test_default_deny_stands_between_hosts(tmp_path: Path) -> None:
    connect = (
        "import socket\n"
        "s = socket.socket(); s.settimeout(0.3)\n"
        "try: s.connect(('10.77.7.10', 902)); print('open')\n"
        "except OSError as exc: print(type(exc).__name__)\n"
    )
    with running(tmp_path) as lab:
        assert run(lab, "proxy-1", sys.executable, "-c", connect)[1] == b"ConnectionRefusedError\n"
        assert run(lab, "console", sys.executable, "-c", connect)[1] == b"TimeoutError\n"
        assert call(lab.control_socket, "firewall.show")["policy"]


def test_second_up_and_down_without_lab(tmp_path: Path) -> None:
    lab = folders.folder("test", tmp_path)
    with pytest.raises(LabNotRunning):
        lifecycle.down(lab)
    with running(tmp_path):
        with pytest.raises(LabRunning):
            lifecycle.up(lab, LAUNCH)
        assert run(lab, "console", "true")[0] == 0
    with pytest.raises(LabNotRunning):
        lifecycle.down(lab, force=True)


def test_racing_ups_have_one_winner(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from lab.errors import LabRunning, RemoteLabError\n"
        "from tests.lab.realise.labs import LAUNCH\n"
        "from lab.realise import folders, lifecycle\n"
        "try: lifecycle.up(folders.folder('test', Path(sys.argv[1])), LAUNCH); print('up')\n"
        "except LabRunning: print('lab.running')\n"
        "except RemoteLabError as exc: print(exc.fields['code'])\n"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=CODE, text=True)
        for _ in range(3)
    ]
    said = sorted(racer.communicate(timeout=60)[0].strip() for racer in racers)
    lab = folders.folder("test", tmp_path)
    assert said == ["lab.running", "lab.running", "up"]
    assert run(lab, "console", "true")[0] == 0
    lifecycle.down(lab)


def test_half_failed_up_undoes_everything(tmp_path: Path) -> None:
    policy = yaml.safe_load((CODE / "firewall_rules" / "policies" / "default-12.3.yaml").read_text())
    text = yaml.safe_dump(policy).replace("- proxy\n", "- nobody\n")
    (tmp_path / "bad.yaml").write_text(text)
    lab = folders.folder("test", tmp_path)
    with pytest.raises(RemoteLabError) as caught:
        lifecycle.up(lab, dataclasses.replace(LAUNCH, policy=tmp_path / "bad.yaml"))
    assert "nobody" in caught.value.message
    eventually(lambda: not lab.running(), "the lab still runs")
    assert lab.state()["phase"] == "failed"
    with running(tmp_path):
        pass


def test_interrupted_up_undoes_everything(tmp_path: Path) -> None:
    lab = folders.folder("test", tmp_path)
    found: list[Remains] = []

    def interrupt(event: dict[str, Any]) -> None:
        found.append(Remains(lab))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lifecycle.up(lab, LAUNCH, progress=interrupt)
    found[0].assert_gone()
    with running(tmp_path):
        pass


def test_down_during_up(tmp_path: Path) -> None:
    lab = folders.folder("test", tmp_path)
    said: list[str] = []

    def take_down(event: dict[str, Any]) -> None:
        if event["done"] == "hosts":
            with pytest.raises(LabNotRunning) as caught:
                call(lab.control_socket, "status")
            said.append(caught.value.message)
            lifecycle.down(lab)

    try:
        lifecycle.up(lab, LAUNCH, progress=take_down)
    except RemoteLabError as exc:
        assert exc.fields["code"] == "lab.failed"
    assert said[0] in ("the lab test is still coming up", "the lab test is going down")
    assert not lab.running()


def test_force_ends_a_stopped_supervisor(tmp_path: Path) -> None:
    with running(tmp_path) as lab:
        remains = Remains(lab)
        suspend(remains.pid("supervisor"))
        lifecycle.down(lab, force=True)
        remains.assert_gone()
        assert lab.state()["phase"] == "killed"


def test_launcher_passes_sigterm_on(tmp_path: Path) -> None:
    with running(tmp_path) as lab:
        remains = Remains(lab)
        os.kill(remains.pid("launcher"), signal.SIGTERM)
        remains.assert_gone()
        assert lab.state()["phase"] == "down"


def test_launcher_that_dies_early_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = folders.folder("test", tmp_path)
    lab.path.mkdir(parents=True)
    (lab.path / "pki").write_text("a file in the way")
    with pytest.raises(LabFailed, match=r"ended while it came up; see .*supervisor\.log"):
        lifecycle.up(lab, LAUNCH)
    assert "FileExistsError" in lab.supervisor_log.read_text()


def test_folder_with_a_long_path(tmp_path: Path) -> None:
    home = tmp_path / ("deep" * 20) / ("folder" * 10)
    with running(home) as lab:
        assert len(str(lab.control_socket)) > 150
        assert run(lab, "console", "echo", "here")[1] == b"here\n"


@pytest.fixture
def under_run() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/run"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.root
@pytest.mark.skipif(not ROOT, reason="only root may write below /run")
def test_folder_below_run(under_run: Path) -> None:
    with running(under_run) as lab:
        code, out, _ = run(lab, "console", "ls", "/run")
        assert code == 0
        assert set(out.decode().split()) == {"lock", "netns", "vadplab", under_run.name}
    assert lab.supervisor_log.exists()


def test_own_view_of_files_and_names(tmp_path: Path) -> None:
    with running(tmp_path) as lab:
        _, out, _ = run(lab, "console", "sh", "-c", "ls /run/vadplab; ls /run/netns | wc -l; getent hosts vcenter")
        assert out.split() == [b"fabric", b"hosts", b"resolv.conf", b"13", b"10.77.6.10", b"vcenter"]
        _, out, _ = run(lab, "proxy-1", "sh", "-c", "cat /proc/sys/net/ipv4/tcp_congestion_control; cat /proc/1/comm")
        assert out.split() == [b"reno", b"vadplab-lab"]
        _, out, _ = run(
            lab,
            "router",
            "sh",
            "-c",
            "cd /proc/sys/net; cat ipv4/ip_forward ipv4/icmp_ratemask netfilter/nf_conntrack_acct netfilter/nf_conntrack_timestamp",
        )
        assert out.split() == [b"1", b"0", b"1", b"1"]
        _, out, _ = run(lab, "isolated-guest", "sh", "-c", "ls /sys/class/net >/dev/null; ip -br link")
        assert out.decode().split()[0] == "lo" and len(out.decode().splitlines()) == 1


@pytest.mark.skipif(not ROOT, reason="needs root to become an ordinary user; as one, every test here is this test")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_ordinary_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    nobody = 65534
    home = Path(tempfile.mkdtemp(prefix="vadplab-user-"))
    os.chown(home, nobody, nobody)
    as_user = ["setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"]
    vadplab = [
        *as_user,
        "env",
        f"VADPLAB_HOME={home}",
        f"HOME={home}",
        f"PYTHONPATH={CODE}",
        sys.executable,
        "-m",
        "lab.cli",
    ]
    try:
        allowed = subprocess.run(
            [*as_user, "unshare", "-Urnmpf", "--mount-proc", "true"], capture_output=True, check=False
        )
        if allowed.returncode:
            pytest.skip(f"user namespaces are not allowed: {allowed.stderr.decode().strip()}")
        up = subprocess.run([*vadplab, "up", "--empty"], capture_output=True, text=True, timeout=60, check=False)
        assert up.returncode == 0, up.stderr
        lab = folders.folder("lab", home)
        state = lab.state()
        assert (state["mode"], state["uid"]) == ("user", nobody)
        hop = subprocess.run([*vadplab, "exec", "router", "--", "sh", "-c", "id -u; nft list ruleset | grep -c counter"],
                             capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        user, counters = hop.stdout.split()
        assert (hop.returncode, user) == (0, "0") and int(counters) > 5
        remains = Remains(lab)
        os.kill(state["supervisor"]["pid"], signal.SIGKILL)
        remains.assert_gone()
        again = subprocess.run([*vadplab, "up", "--empty"], capture_output=True, text=True, timeout=60, check=False)
        assert again.returncode == 0, again.stderr
        down = subprocess.run([*vadplab, "down", "--purge"], capture_output=True, text=True, timeout=60, check=False)
        assert down.returncode == 0, down.stderr
        assert not lab.path.exists()
    finally:
        lab = folders.folder("lab", home)
        if lab.running():
            lifecycle.down(lab, force=True, timeout=DEADLINE)
        shutil.rmtree(home)
