# SPDX-License-Identifier: MIT
"""A lab as its user has it: the real `vadplab` as a process, its documents, and the evidence that the lab leaves.

*Answer* is what one command said; `Lab` is one named lab in a home of its own; *evidence* (packets, journals, the
storage's and vCenter's own word) is read past the engine, so that a test need not believe it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fakes.core.fabric import FabricClient
from lab.realise import folders, lifecycle
from lab.realise.folders import LabFolder
from lab.topology import find
from tests.lab.realise.labs import Remains

Document = dict[str, Any]
VADPLAB = Path(sys.executable).with_name("vadplab")
COMMAND_DEADLINE = 240.0
JOB = "demo"

DRILL_SIZES = {"512MiB": "96MiB", "256MiB": "32MiB", "128MiB": "16MiB"}
"""Disks of the shipped topology → disks that are read in a moment, for tests of what goes wrong."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one command said. `document` is its one JSON document."""

    code: int
    document: Document
    stdout: str
    stderr: str

    @property
    def error(self) -> Document:
        """The error of the document: the document itself, or its `error`."""
        if self.document.get("schema") == "vadplab.error/1":
            return self.document
        return dict(self.document["error"] or {})


def vadplab(home: Path, *argv: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Answer:
    """Runs `vadplab ARGV… --json` (`--json` before a `--`) and reads its one document.

    Fails the test when standard output is not exactly one JSON document with a schema, or standard error has a traceback.
    """
    at = argv.index("--") if "--" in argv else len(argv)
    done = run_text(home, *argv[:at], "--json", *argv[at:], env=env, cwd=cwd)
    lines = done.stdout.splitlines()
    assert len(lines) == 1, f"{' '.join(argv)}: {len(lines)} lines instead of one document: {done.stdout} {done.stderr}"
    document = json.loads(lines[0])
    assert isinstance(document, dict)
    schema = str(document.get("schema"))
    assert schema.startswith("vadplab.") and schema.rpartition("/")[2].isdigit(), schema
    return Answer(done.returncode, document, done.stdout, done.stderr)


def run_text(
    home: Path, *argv: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `vadplab ARGV…` as it is; no command may end in a traceback."""
    done = subprocess.run(
        [str(VADPLAB), *argv],
        env={**os.environ, "VADPLAB_HOME": str(home), **(env or {})},
        cwd=cwd or home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr + done.stdout
    return done


def drill_topology(folder: Path, change: Callable[[Document], None] | None = None) -> Path:
    """The shipped topology with small disks, after `change`, as a file in `folder`."""
    text = find(None).read_text()
    for shipped, small in DRILL_SIZES.items():
        assert shipped in text
        text = text.replace(shipped, small)
    plan = yaml.safe_load(text)
    if change is not None:
        change(plan)
    path = folder / "drill.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


class Run:
    """A run's folder: its flows, and the evidence beneath them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.flows: Document = json.loads((folder / "flows.json").read_text())

    def attempts(self, row: str) -> list[Document]:
        """Flows of a row that somebody attempted."""
        return [f for f in self.flows["flows"] if f["row"] == row and f["start"] is not None]

    def verdicts(self, row: str) -> set[str]:
        """The verdicts of a row's attempts; empty when nobody tried."""
        return {f["verdict"] for f in self.attempts(row)}

    def rows(self) -> set[str]:
        """Rows that somebody attempted."""
        return {str(f["row"]) for f in self.flows["flows"] if f["start"] is not None}

    def step(self, step: str) -> Document:
        """One step's record."""
        return next(s for s in self.flows["steps"] if s["step"] == step)

    def first_syns(self) -> set[tuple[str, str, int]]:
        """(source, destination, port) of every first SYN that reached the router, read by tshark."""
        opened = tshark(
            self.folder / "capture.pcapng",
            "tcp.flags.syn == 1 && tcp.flags.ack == 0",
            ("ip.src", "ip.dst", "tcp.dstport"),
        )
        return {(src, dst, int(port)) for src, dst, port in opened}

    def syns_to(self, address: str, port: int | None = None) -> set[tuple[str, str, int]]:
        """First SYNs to an address (and port)."""
        return {s for s in self.first_syns() if s[1] == address and port in (None, s[2])}

    def gateway(self) -> list[str]:
        """Methods that reached vCenter in this run, from its own journal."""
        return [str(entry["method"]) for entry in lines(self.folder / "vcenter" / "journal.jsonl")]

    def authd(self, host: str) -> list[Document]:
        """What an ESXi host's own journal has of this run."""
        return lines(self.folder / host / "journal.jsonl")

    def freezes(self, vm: str) -> list[str]:
        """`frozen` and `thawed` as the guest recorded them, in order."""
        return [str(r["event"]) for r in lines(self.folder / f"guest-{vm}" / "freeze.jsonl")]

    def counted(self, rule: str) -> int:
        """By how many packets the firewall's counter of a rule moved."""
        before, after = (
            json.loads((self.folder / f"counters-{when}.json").read_text()) for when in ("before", "after")
        )
        return int(after[rule]["packets"]) - int(before.get(rule, {}).get("packets", 0))


class Lab:
    """One running lab in a home of its own."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.name = home, name
        self.folder: LabFolder = folders.folder(name, home)

    def __call__(self, *argv: str) -> Answer:
        """`vadplab --lab NAME ARGV… --json`."""
        return vadplab(self.home, "--lab", self.name, *argv)

    def done(self, *argv: str) -> Document:
        """The document of a command that must end with 0."""
        answer = self(*argv)
        assert answer.code == 0, answer.stdout + answer.stderr
        return answer.document

    def job(self, *options: str, code: int, name: str = JOB) -> tuple[Document, Run]:
        """Runs a job; its document and its evidence, which must agree with itself."""
        answer = self("job", "run", name, *options)
        document = answer.document
        assert document["schema"] == "vadplab.job-run/1", answer.stdout
        assert answer.code == document["exit_code"] == code, answer.stdout + answer.stderr
        assert document["evidence"] == "consistent", document["problems"]
        run = Run(Path(document["folder"]))
        assert all(f["consistent"] for f in run.flows["flows"])
        assert "broken" not in document["invariants"].values()
        return document, run

    def storage(self, datastore: str = "datastore1") -> FabricClient:
        """The storage service's own word, over its fabric socket."""
        return FabricClient(self.outside_path(f"/run/vadplab/fabric/storage-{datastore}.sock"))

    def snapshots(self) -> dict[str, int]:
        """`{where: how many}` snapshots that exist now, by the storage and by a login of our own at vCenter."""
        client = self.storage()
        try:
            found = {f"storage {vm['vm']}": len(vm["snapshots"]) for vm in client.call("vm.list")}
        finally:
            client.close()
        script = Path(__file__).with_name("snapshots_at_vcenter.py")
        said = run_text(self.home, "--lab", self.name, "exec", "vcenter", "--", sys.executable, str(script),
                        self.address("vcenter"), str(self.folder.topology_file))  # fmt: skip
        assert said.returncode == 0, said.stderr
        return found | {f"vcenter {vm}": count for vm, count in json.loads(said.stdout).items()}

    def points(self) -> list[Document]:
        """The visible restore points."""
        return list(self.done("points")["points"])

    def address(self, host: str) -> str:
        """A host's address."""
        plan = yaml.safe_load(self.folder.topology_file.read_text())
        return str(plan["hosts"][host]["address"]).split("/")[0]

    def outside_path(self, inside: str) -> Path:
        """A path of the lab's own mount namespace, reachable from here."""
        supervisor = self.folder.state()["supervisor"]["pid"]
        return Path(f"/proc/{supervisor}/root") / inside.lstrip("/")

    def processes(self) -> set[str]:
        """Modules of ours that run inside the lab now, by its pid namespace."""
        namespace = Path(f"/proc/{self.folder.state()['supervisor']['pid']}/ns/pid").readlink()
        found = set()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "ns/pid").readlink() == namespace:
                    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    found |= {words[at + 1] for at, word in enumerate(words[:-1]) if word == "-m"}
            except OSError:
                continue  # it ended meanwhile
        return found


@contextmanager
def up(home: Path, name: str, *options: str) -> Iterator[Lab]:
    """A lab that `vadplab up` brought up; afterwards it is down and nothing of it is left but its folder."""
    lab = Lab(home, name)
    home.mkdir(parents=True, exist_ok=True)
    lab.done("up", *options)
    remains = Remains(lab.folder)
    try:
        yield lab
        lab.done("down")
    finally:
        if lab.folder.running():
            lifecycle.down(lab.folder, force=True)
    remains.assert_gone()


def lines(path: Path) -> list[Document]:
    """JSON lines of a file that may not be there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def tshark(capture: Path, display_filter: str, fields: tuple[str, ...], *options: str) -> list[tuple[str, ...]]:
    """The fields of every packet that a display filter of Wireshark lets through."""
    program = shutil.which("tshark")
    assert program is not None, "tshark is not installed"
    argv = [program, "-r", str(capture), *options, "-Y", display_filter, "-T", "fields"]
    for name in fields:
        argv += ["-e", name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(line.split("\t")) for line in done.stdout.splitlines()]
