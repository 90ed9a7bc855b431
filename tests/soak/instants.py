# SPDX-License-Identifier: MIT
"""The drill: a job runs, something of it is killed at a random instant, and then nothing of the promises is broken.

*Instant*: kind of run (full, incremental), transport mode, victim, and when, as a part of the time that such a run takes. All are
drawn from one seed before the first run, so that the same seed gives the same drill on any machine.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.store import health
from engine.store.points import HIDDEN
from tests.e2e.harness import COMMAND_DEADLINE, JOB, VADPLAB, Document, Lab
from tests.soak.victims import PORTS, VICTIMS, Hosts, Process, Victim

MODES = ("nbd", "nbdssl", "hotadd", "san")
RECOVERY = 90.0
"""Seconds in which the lab must have started again what was killed."""
POLL = 0.01
DISAGREE = 4
"""Exit code of a run whose witnesses disagree: never right, whatever was killed."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Instant:
    """When what is killed in which kind of run. `part`: of the time that a run of this kind and mode takes."""

    number: int
    full: bool
    mode: str
    victim: Victim
    part: float

    def __str__(self) -> str:
        kind = "full" if self.full else "incremental"
        return f"{self.number:2}: {kind} in {self.mode}: {self.victim.name} at {self.part:.3f} of the run"


def draw(seed: int, count: int) -> list[Instant]:
    """The instants of a seed: every victim and mode about as often."""
    rng = random.Random(seed)
    victims = [VICTIMS[n % len(VICTIMS)] for n in range(count)]
    rng.shuffle(victims)
    return [
        Instant(number, rng.random() < 0.4, rng.choice(MODES), victim, rng.uniform(0.02, 1.0))
        for number, victim in enumerate(victims, 1)
    ]


class Broken(AssertionError):
    """A promise that did not hold, with the instant after which."""


class Soak:
    """A drill in a running lab whose disks are small."""

    def __init__(self, lab: Lab, say: Say) -> None:
        self._lab = lab
        self._say = say
        self._hosts = Hosts(lab)
        self._times: dict[tuple[bool, str], float] = {}
        self.killed = 0
        self.interrupted = 0

    def run(self, instants: list[Instant]) -> None:
        """Goes through the instants. Raises Broken at the first promise that does not hold."""
        for instant in instants:
            try:
                self._one(instant)
            except AssertionError as exc:
                raise Broken(f"after instant {instant}: {exc}") from exc

    def _one(self, instant: Instant) -> None:
        took = self._times.get((instant.full, instant.mode)) or self._clean(instant)
        before = self._points()
        process = self._start(instant)
        try:
            victims = self._kill(instant, process, took)
            out, err = process.communicate(timeout=COMMAND_DEADLINE)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        assert "Traceback" not in out + err, out + err
        assert process.returncode != DISAGREE, f"the witnesses disagree: {out[-4000:]} {err[-2000:]}"
        self.killed += bool(victims)
        self.interrupted += bool(victims) and process.returncode != 0
        names = ", ".join(sorted({f"{p.host}/{p.name}" for p in victims})) or "nothing was there any more"
        self._say(f"{instant}: killed {len(victims)} ({names}); the command ended with {process.returncode}")
        self._check_points(before)
        self._await_services()
        self._clean(instant)
        self._check_nothing_left()
        self._check_points(before)

    def _clean(self, instant: Instant) -> float:
        """A run of the same kind that nobody disturbs: it must succeed. Seconds it took."""
        begun = time.monotonic()
        process = self._start(instant)
        out, err = process.communicate(timeout=COMMAND_DEADLINE)
        assert process.returncode == 0, f"an undisturbed run failed: {out[-2000:]} {err[-2000:]}"
        document = json.loads(out.splitlines()[-1])
        assert document["result"] in ("success", "warning"), document
        took = time.monotonic() - begun
        self._times.setdefault((instant.full, instant.mode), took)
        return took

    def _start(self, instant: Instant) -> subprocess.Popen[str]:
        options = ["--mode", instant.mode, *(["--full"] if instant.full else [])]
        return subprocess.Popen(
            [str(VADPLAB), "--lab", self._lab.name, "job", "run", JOB, *options, "--json"],
            env={**os.environ, "VADPLAB_HOME": str(self._lab.home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _kill(self, instant: Instant, job: subprocess.Popen[str], took: float) -> list[Process]:
        """Kills at the instant; a victim that is not there yet is awaited, one that is gone already gives nothing."""
        at = time.monotonic() + took * instant.part
        while job.poll() is None:
            left = at - time.monotonic()
            if left <= 0 and (victims := self._hosts.kill(instant.victim)):
                return victims
            time.sleep(min(max(left, POLL), 0.1))
        return []

    def _await_services(self) -> None:
        end = time.monotonic() + RECOVERY
        while missing := set(PORTS) - self._hosts.serving():
            assert time.monotonic() < end, f"not started again: {sorted(missing)}"
            time.sleep(0.05)

    # What must hold

    @property
    def _repository(self) -> Path:
        return self._lab.folder.path / "hosts" / "repository-1" / "var" / "repository"

    def _points(self) -> set[Path]:
        """Folders of visible restore points, as they lie in the repository."""
        return {
            path for path in self._repository.glob("*/*/*") if path.is_dir() and not path.name.startswith(HIDDEN)
        }  # fmt: skip

    def _check_points(self, before: set[Path]) -> None:
        """All earlier points are there, and every visible one is whole: by every byte, and by QEMU's own check."""
        now = self._points()
        assert before <= now, f"restore points vanished: {sorted(map(str, before - now))}"
        broken = [str(path) for path in now if not (path / "manifest.json").is_file()]
        assert not broken, f"partial restore points are visible: {broken}"
        damage = [each.describe() for vm in health.verify_repository(self._repository) for each in vm.damage]
        assert not damage, f"restore points do not verify: {damage[:4]}"
        for image in (image for path in now - before for image in path.glob("*.qcow2")):
            said = subprocess.run(["qemu-img", "check", str(image)], capture_output=True, text=True, check=False)
            assert said.returncode == 0, f"{image}: {said.stdout} {said.stderr}"

    def _check_nothing_left(self) -> None:
        """No snapshot, by storage and by vCenter; no disk attached to a proxy; no partial folder; no guest frozen."""
        left = {where: count for where, count in self._lab.snapshots().items() if count}
        assert not left, f"orphan snapshots: {left}"
        client = self._lab.storage()
        try:
            attached: list[Document] = client.call("disk.attachments")
        finally:
            client.close()
        assert not attached, f"disks left attached: {attached}"
        hidden = [str(path) for path in self._hidden()]
        assert not hidden, f"unfinished folders left in the repository: {hidden}"

    def _hidden(self) -> Iterator[Path]:
        return (path for path in self._repository.glob("*/*/*") if path.name.startswith(HIDDEN))
