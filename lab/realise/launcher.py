# SPDX-License-Identifier: MIT
"""The launcher: the process that stays outside and whose child is the supervisor.

    vadplab up ── starts ──> launcher ── forks ──> caretaker   (outside the namespaces; see `lab.realise.outside`)
                                     └── forks ──> supervisor  (pid 1 of the lab) ── forks ──> zygote ──> daemons

It takes the lab's lock, writes the state file before anything is created, makes the namespaces and waits. Supervisor and
launcher each end with the other, SIGKILL included. An ordinary user's lab lives in a user namespace in which that user
is root.

Run as `python -m lab.realise.launcher FOLDER REPORT-FD`, with `Launch` as JSON on standard input. Everything it has to
say goes to the report descriptor, one JSON object a line: `{"done": …}`, then `{"ready": status}` or `{"error": …}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from engine.errors import VadplabError
from lab.errors import PowerMissing, exit_status
from lab.realise import kernel, live, outside
from lab.realise.folders import LabFolder
from lab.realise.launch import Launch
from lab.topology import load

CARETAKER_GRACE = 30.0
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: list[str]) -> int:
    """Runs a lab until it ends; returns its exit code."""
    lab, report = LabFolder(Path(argv[0])), int(argv[1])
    launch = Launch.from_json(sys.stdin.read())
    os.set_inheritable(report, False)
    if os.fork():
        os._exit(0)  # whoever ran us need not wait for the lab's end
    os.setsid()
    try:
        lab.lock()  # held, through this descriptor, as long as this process or the supervisor lives
    except VadplabError as exc:
        _say(report, exc)
        return exit_status(exc)
    os.write(report, json.dumps({"launcher": identity(os.getpid())}).encode() + b"\n")
    try:
        return _run(lab, launch, report)
    except VadplabError as exc:
        _say(report, exc)
        lab.write_state(phase="failed", error=exc.to_dict())
        return exit_status(exc)


def _run(lab: LabFolder, launch: Launch, report: int) -> int:
    topology = load(launch.topology)
    lab.make(list(topology.hosts))
    _streams(lab)
    mode = "root" if os.geteuid() == 0 else "user"
    lab.state_file.unlink(missing_ok=True)
    lab.write_state(
        phase="starting",
        mode=mode,
        uid=os.getuid(),
        launcher=identity(os.getpid()),
        created=time.time(),
        topology=str(launch.topology),
        policy=str(launch.policy) if launch.policy else None,
        vcsim=launch.vcsim,
    )
    caretaker, to_outside = outside.start()
    ids = _IdMap.prepare() if mode == "user" else None
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.unshare(kernel.CLONE_NEWPID | (kernel.CLONE_NEWUSER if ids else 0))
    except OSError as exc:
        to_outside.close()
        raise PowerMissing(f"no new namespaces for this user: {exc.strerror}") from exc
    if ids:
        ids.write()
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    child = os.fork()
    if child == 0:
        os.close(go_write)
        _inside(lab, launch, report, go_read, to_outside, mode)
    os.close(go_read)
    os.close(report)
    to_outside.close()
    if not ids:
        kernel.setns(own_pids, kernel.CLONE_NEWPID)  # else every later child would land in the lab
    lab.write_state(supervisor=identity(child), caretaker=identity(caretaker))

    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)

    for number in _ENDING:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    os.write(go_write, b"1")
    os.close(go_write)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    _wait(caretaker, CARETAKER_GRACE)
    lab.control_socket.unlink(missing_ok=True)
    lab.write_state(phase="killed" if code < 0 else "down" if code == 0 else "failed", ended=time.time())
    return code if code >= 0 else 128 - code


def _inside(lab: LabFolder, launch: Launch, report: int, go: int, to_outside: Any, mode: str) -> None:
    """The child: becomes the supervisor once the launcher has written down that it exists. Never returns."""
    code = 1
    try:
        kernel.die_with_parent()
        if os.read(go, 1) != b"1":  # the launcher is gone already: no signal will come
            os._exit(1)
        os.close(go)
        kernel.unshare(kernel.CLONE_NEWNS)
        code = live.run(lab, launch, report, to_outside, mode)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _streams(lab: LabFolder) -> None:
    """Standard output and error go to the supervisor's log; there is no input."""
    log = os.open(lab.supervisor_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for number, fd in ((0, nothing), (1, log), (2, log)):
        os.dup2(fd, number)
    os.close(log)
    os.close(nothing)
    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} launcher {os.getpid()}", file=sys.stderr, flush=True)


class _IdMap:
    """The user namespace's ids: this user is root inside; with newuidmap and a range in /etc/subuid, 65535 more ids."""

    def __init__(self, helper: int | None, ready: int | None) -> None:
        self._helper = helper
        self._ready = ready
        self._uid, self._gid = os.getuid(), os.getgid()

    @classmethod
    def prepare(cls) -> _IdMap:
        """Before the unshare: forks the helper that has to run newuidmap from outside, where that is possible."""
        uid_range, gid_range = subordinate("/etc/subuid"), subordinate("/etc/subgid")
        if not (uid_range and gid_range and shutil.which("newuidmap") and shutil.which("newgidmap")):
            return cls(None, None)
        read, write = os.pipe2(os.O_CLOEXEC)
        target, uid, gid = os.getpid(), os.getuid(), os.getgid()
        helper = os.fork()
        if helper:
            os.close(read)
            return cls(helper, write)
        code = 1
        try:
            os.close(write)
            if os.read(read, 1) == b"1":
                code = 0
                for tool, own, (start, count) in (("newuidmap", uid, uid_range), ("newgidmap", gid, gid_range)):
                    line = [tool, str(target), "0", str(own), "1", "1", str(start), str(count)]
                    code = code or subprocess.run(line, check=False, timeout=10).returncode
        finally:
            os._exit(code)

    def write(self) -> None:
        """After the unshare: maps the ids."""
        if self._helper is not None and self._ready is not None:
            os.write(self._ready, b"1")
            os.close(self._ready)
            _, status = os.waitpid(self._helper, 0)
            if os.waitstatus_to_exitcode(status) == 0:
                return
        own = Path("/proc/self")
        if not (own / "uid_map").read_text():  # the helper may have come half way
            (own / "uid_map").write_text(f"0 {self._uid} 1")
        if not (own / "gid_map").read_text():
            (own / "setgroups").write_text("deny")
            (own / "gid_map").write_text(f"0 {self._gid} 1")


def subordinate(path: str) -> tuple[int, int] | None:
    """First id and count of this user's range in /etc/subuid or /etc/subgid, if there is one."""
    import pwd

    names = {str(os.getuid())}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(os.getuid()).pw_name)
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        user, _, rest = line.partition(":")
        start, _, count = rest.partition(":")
        if user in names and start.isdigit() and count.isdigit():
            return int(start), min(int(count), 65535)
    return None


def identity(pid: int) -> dict[str, int]:
    """A pid with its start time, so that a reused pid is never taken for it."""
    return {"pid": pid, "start": start_time(pid) or 0}


def start_time(pid: int) -> int | None:
    """A process's start time in clock ticks since boot, or None when no such process runs (any more)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _wait(pid: int, timeout: float) -> None:
    """Waits for a child to end, at most `timeout` seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            return
        time.sleep(0.005)
    print(f"launcher: the caretaker {pid} has not ended after {timeout} s", file=sys.stderr)


def _say(report: int, error: VadplabError) -> None:
    document = {"error": {**error.to_dict(), "exit_code": exit_status(error)}}
    with contextlib.suppress(OSError):
        os.write(report, json.dumps(document).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
