# SPDX-License-Identifier: MIT
"""`points` and `restore` with the lab down: on a lab folder whose repository holds real restore points."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.store.points import Points
from lab.cli import main
from lab.disks.truth import BLOCK
from tests.engine.store.disks import CLUSTER, document, make_chain, make_point, point_id, store, versions

MIB = 1 << 20


class Down:
    """A lab that is down, with one repository."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = home / "labs" / "lab"
        self.repository = self.path / "hosts" / "repository-1" / "var" / "repository"
        self.repository.mkdir(parents=True)
        self.points = Points(self.repository)
        self._capsys = capsys

    def __call__(self, *argv: str) -> tuple[int, dict[str, Any]]:
        code = main(["--lab", "lab", *argv, "--json"])
        (line,) = self._capsys.readouterr().out.splitlines()
        return code, json.loads(line)

    def text(self, *argv: str) -> tuple[int, str]:
        code = main(["--lab", "lab", *argv])
        return code, self._capsys.readouterr().out

    def chain(self) -> list[Path]:
        """A full and two incrementals of vm1, an hour apart."""
        return make_chain(self.points, versions(bytes(range(256)) * (MIB // 256), 3, seed=5))

    def truth(self, content: bytes, session: str) -> Path:
        folder = self.path / "fakes" / "storage-datastore1" / "truth" / "vm1"
        folder.mkdir(parents=True)
        digests = b"".join(hashlib.sha256(content[at : at + BLOCK]).digest() for at in range(0, len(content), BLOCK))
        (folder / "1-2000.sha256").write_bytes(digests)
        disks = [{"key": 2000, "size": len(content), "digests": "1-2000.sha256"}]
        path = folder / "1.json"
        path.write_text(json.dumps({"id": 1, "description": f"session {session}", "disks": disks}))
        return path


@pytest.fixture
def down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Down:
    monkeypatch.setenv("VADPLAB_HOME", str(tmp_path))
    return Down(tmp_path, capsys)


def damage(folder: Path) -> None:
    """Flips a bit in the middle of the point's disk file."""
    file = folder / "disk-2000.qcow2"
    file.chmod(0o600)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def frozen_point(points: Points, content: bytes, point: str) -> None:
    """A point that claims that its file system was frozen."""
    folder = points.begin("demo", "vm1", point)
    points.commit("demo", "vm1", point, document(point, store(folder, content)) | {"consistency": "file-system"})


# --- points


def test_points_alone_and_its_verb_list_the_same(down: Down) -> None:
    down.chain()
    assert down("points") == down("points", "list")
    code, document = down("points")
    assert (code, document["schema"]) == (0, "vadplab.points/1")
    assert [p["kind"] for p in document["points"]] == ["full", "incremental", "incremental"]
    code, text = down.text("points")
    assert code == 0 and text.count("vm1") == 3


def test_verify_says_that_all_is_well(down: Down) -> None:
    down.chain()
    code, document = down("points", "verify", "--deep")
    assert (code, document["schema"], document["intact"]) == (0, "vadplab.points-verify/1", True)
    assert [p["intact_disks"] for p in document["points"]] == [[2000]] * 3


def test_verify_names_a_flipped_bit_and_what_is_intact(down: Down) -> None:
    first, _, last = down.chain()
    damage(last)
    code, document = down("points", "verify")
    assert (code, document["intact"], document["exit_code"]) == (1, False, 1)
    assert [bool(p["damage"]) for p in document["points"]] == [False, False, True]
    assert down("points", "verify", first.name)[0] == 0
    code, text = down.text("points", "verify", last.name)
    assert code == 1 and last.name in text and "disk-2000.qcow2" in text


def test_verify_of_nothing_is_no_success(down: Down) -> None:
    code, document = down("points", "verify")
    assert (code, document["code"]) == (2, "restore.point-unknown")
    down.chain()
    assert down("points", "verify", "--vm", "ghost")[0] == 2
    assert down("points", "verify", "20010101T000000Z-0000")[0] == 2


def test_prune_keeps_the_newest_and_its_content(down: Down) -> None:
    *_, last = down.chain()
    code, document = down("points", "prune", "--count", "1", "--dry-run")
    assert (code, document["dry_run"]) == (0, True)
    (planned,) = document["vms"]
    assert planned["merges"] == [last.name] and len(planned["removals"]) == 2
    assert len(down("points")[1]["points"]) == 3, "a dry run changes nothing"
    code, document = down("points", "prune", "--count", "1")
    assert code == 0 and document["vms"][0]["removals"] == planned["removals"]
    (left,) = down("points")[1]["points"]
    assert (left["point"], left["kind"]) == (last.name, "synthetic-full")
    assert down("points", "verify")[0] == 0


def test_a_dry_run_supposes_another_day(down: Down) -> None:
    """Days pass without waiting: what goes is what is older than so many days at that time, and nothing was changed."""
    points = [folder.name for folder in down.chain()]
    made = datetime.strptime(points[0][:15], "%Y%m%dT%H%M%S")

    def planned(at: datetime, *options: str) -> dict[str, Any]:
        argv = ("points", "prune", "--days", "7", *options, "--dry-run", "--as-of", at.isoformat())
        code, document = down(*argv)
        assert code == 0 and document["as_of"] == at.replace(tzinfo=UTC).isoformat()
        (one,) = document["vms"]
        return dict(one)

    week, hour = timedelta(days=7), timedelta(hours=1)
    assert planned(made + week)["removals"] == []
    late = planned(made + week + hour / 2)
    assert (late["merges"], late["removals"]) == ([points[1]], [points[0]])
    assert planned(made + 9 * week)["removals"] == [points[1], points[0]], "the newest stays"
    assert planned(made + 9 * week, "--count", "2")["removals"] == [points[0]], "both rules must let it go"
    assert len(down("points")[1]["points"]) == 3


def test_damage_that_does_no_harm_is_said_to_do_none(down: Down) -> None:
    *_, last = down.chain()

    def zero(name: str) -> None:
        (last / name).chmod(0o600)
        (last / name).write_bytes(bytes((last / name).stat().st_size))

    zero("disk-2000.blocks")
    code, text = down.text("points", "verify")
    assert code == 1 and "damaged" in text and "can still be restored" in text
    zero("disk-2000.digests")
    code, text = down.text("points", "verify")
    assert code == 1 and "damaged" in text and "can still be restored" not in text


@pytest.mark.parametrize(
    "argv",
    [
        ("points", "prune"),
        ("points", "prune", "--count", "1", "--as-of", "2026-01-01"),
        ("points", "prune", "--count", "1", "--dry-run", "--as-of", "soon"),
        ("points", "prune", "--count", "0"),
        ("points", "prune", "--days", "-1"),
        ("points", "prune", "--count", "two"),
        ("points", "prune", "--count", "1", "--vm", "ghost"),
        ("points", "verfy"),
        ("points", "verify", "--depth"),
        ("points", "import"),
        ("points", "import", "/nowhere"),
        ("points", "import", "/tmp", "--repository", "repository-9"),
        ("restore",),
        ("restore", "disk"),
        ("restore", "files"),
    ],
)
def test_wrong_arguments_change_nothing(down: Down, argv: tuple[str, ...]) -> None:
    down.chain()
    before = down("points")[1]["points"]
    code, document = down(*argv)
    assert (code, document["schema"]) == (2, "vadplab.error/1")
    assert document["message"] and document["next"]
    assert down("points")[1]["points"] == before


def test_import_copies_points_and_refuses_damaged_ones(down: Down, tmp_path: Path) -> None:
    other = Points(tmp_path / "copy")
    other.repository.mkdir()
    make_point(other, b"good" * CLUSTER, point=point_id(1), vm="good")
    damage(make_point(other, b"evil" * CLUSTER, point=point_id(2), vm="evil"))
    code, document = down("points", "import", str(other.repository))
    assert (code, document["repository"], len(document["points"]), len(document["refused"])) == (
        1,
        "repository-1",
        1,
        1,
    )
    assert "evil" in document["refused"][0]["folder"]
    assert [p["vm"] for p in down("points")[1]["points"]] == ["good"]
    shutil.rmtree(other.repository / "demo" / "evil")
    code, document = down("points", "import", str(other.repository))
    assert code == 1 and document["refused"][0]["code"], "it is there already"


# --- restore disk


CONTENT = b"".join(bytes([n]) * BLOCK for n in range(1, 9))


def test_a_disk_is_restored_with_and_without_the_verb(down: Down, tmp_path: Path) -> None:
    point = make_point(down.points, CONTENT)
    for number, argv in enumerate((["restore"], ["restore", "disk"])):
        target = tmp_path / f"disk-{number}"
        code, document = down(*argv, point.name, "--disk", "2000", "--to", str(target))
        assert (code, document["schema"], document["result"]) == (0, "vadplab.restore/1", "success")
        assert target.read_bytes() == CONTENT
    code, _ = down("restore", "--disk", "1", "--to", str(tmp_path / "first"), point.name)
    assert code == 0, "options may come first"


def test_comparison_is_made_and_each_problem_of_it_stays_in_the_document(down: Down, tmp_path: Path) -> None:
    point = make_point(down.points, CONTENT)
    session = down("points")[1]["points"][0]["session"]
    restore = ("restore", point.name, "--disk", "1", "--compare", "--to")
    code, document = down(*restore, str(tmp_path / "one"))
    assert (code, document["exit_code"], document["result"]) == (3, 3, "success")
    assert document["comparison"]["equal"] is None and document["comparison"]["error"]["code"] == "truth.missing"
    record = down.truth(CONTENT, session)
    assert down(*restore, str(tmp_path / "two"))[1]["comparison"]["equal"] is True
    (record.parent / "1-2000.sha256").write_bytes(bytes(32 * 8))
    code, document = down(*restore, str(tmp_path / "three"))
    assert code == 1 and document["comparison"]["differing"] == 8
    record.write_text("{")
    code, document = down(*restore, str(tmp_path / "four"))
    assert code == 3 and document["comparison"]["error"]["code"] == "truth.failed"
    record.unlink()
    (record.parent / "1.pending").write_text(json.dumps({"header": {"description": session}}))
    code, document = down(*restore, str(tmp_path / "five"))
    assert code == 3 and document["comparison"]["error"]["code"] == "truth.pending"


@pytest.mark.skipif(shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None, reason="needs e2fsprogs")
def test_a_check_is_held_against_the_claim_of_the_point(down: Down, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8 * MIB))
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-O", "^metadata_csum", str(image)], check=True, timeout=60)
    frozen_point(down.points, image.read_bytes(), point_id(1))
    with image.open("r+b") as file:  # the flag of a file system that was mounted (EXT3_FEATURE_INCOMPAT_RECOVER)
        file.seek(1024 + 0x60)
        flags = file.read(4)
        file.seek(1024 + 0x60)
        file.write(bytes([flags[0] | 4]) + flags[1:])
    frozen_point(down.points, image.read_bytes(), point_id(2))
    claims = {p["point"]: p["consistency"] for p in down("points")[1]["points"]}
    assert set(claims.values()) == {"file-system"}
    found = {}
    for number in (1, 2):
        argv = ("restore", point_id(number), "--disk", "1", "--check", "--to", str(tmp_path / f"disk-{number}"))
        code, document = down(*argv)
        found[number] = (code, document["check"]["filesystem"], document["check"]["sound"])
        assert document.get("consistency") is None or isinstance(document["consistency"], str)
    assert found == {1: (0, "file-system-consistent", True), 2: (1, "crash-consistent", False)}
    disks = [{"size": 8 * MIB, "contents": "guest"}]
    (down.path / "inventory.yaml").write_text(yaml.safe_dump({"vms": [{"name": "vm1", "power": "on", "disks": disks}]}))
    code, document = down("restore", point_id(1), "--disk", "1", "--check", "--to", str(tmp_path / "disk-3"))
    assert code == 1 and "no ledger" in document["check"]["problems"][0]


# --- restore files


@pytest.mark.skipif(shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None, reason="needs e2fsprogs")
def test_single_files_are_listed_and_restored(down: Down, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    (tree / "etc" / "odd\n\x1b[31mname").symlink_to("hosts")
    image = tmp_path / "image"
    image.write_bytes(bytes(8 * MIB))
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-d", str(tree), str(image)], check=True, timeout=60)
    point = make_point(down.points, image.read_bytes())
    files = ("restore", "files", point.name)
    code, document = down(*files, "/etc", "--disk", "1", "--list")
    assert (code, document["schema"]) == (0, "vadplab.restore-files/1")
    assert [e["name"] for e in document["paths"][0]["entries"]] == ["hosts", "odd\n\x1b[31mname"]
    target = tmp_path / "out"
    target.mkdir()
    code, document = down(*files, "/etc/hosts", "/ghost", "--disk", "1", "--to", str(target))
    assert (target / "hosts").read_text() == "127.0.0.1 localhost\n"
    one, ghost = document["paths"]
    assert one["files"] == 1 and ghost["error"]["code"] and code != 0 and document["exit_code"] == code
    code, document = down(*files, "/etc/hosts", "--disk", "1", "--to", str(target))
    assert code != 0 and "overwritten" in document["paths"][0]["error"]["next"]
    text = down.text(*files, "/etc", "--disk", "1", "--list")[1]
    assert "odd\\n\\x1b[31mname" in text and "\x1b[31mname" not in text, "a name does not write to the terminal"
    for wrong in (("--to", str(target / "ghost")), (), ("--list", "--to", str(target)), ("--list", "--disk", "9")):
        assert down(*files, "/etc", *(wrong if "--disk" in wrong else ("--disk", "1", *wrong)))[0] == 2, wrong
    assert sorted(p.name for p in target.iterdir()) == ["hosts"]
