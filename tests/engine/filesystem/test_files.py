# SPDX-License-Identifier: MIT
"""Single files out of restore points: against what mkfs was given and what debugfs says, and with hostile images."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import VadplabError
from engine.filesystem.ext4 import Ext4, NoFileSystem, PathNotFound
from engine.filesystem.files import DiskFiles
from engine.filesystem.partitions import PartitionUnknown, open_system, partitions
from engine.store.errors import Damaged, FormatError
from engine.store.points import Points
from engine.store.sparse import FileNotWritten
from engine.store.view import DiskView
from tests.engine.store.disks import make_chain, make_point
from tests.engine.store.test_verify import flip, places

ODD = [
    "ein Umlaut ä",
    "new\nline",
    "-rf",
    "tab\there",
    "*?[",
    b"\xff\xfe".decode("utf-8", "surrogateescape"),
    "x" * 255,
]


@contextlib.contextmanager
def files_of(folder: Path) -> Iterator[DiskFiles]:
    """The files of disk 2000 of the restore point in `folder`."""
    with DiskView(folder, 2000) as view:
        yield DiskFiles(view)


class Image:
    """An image in memory."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])


def tree(root: Path) -> None:
    """A tree with everything that a restore of files must keep."""
    rng = random.Random(7)
    (root / "etc").mkdir(parents=True)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc/secret").write_bytes(b"s" * 60)
    (root / "etc/secret").chmod(0o640)
    (root / "etc/tool").write_bytes(b"#!/bin/sh\n")
    (root / "etc/tool").chmod(0o4755)
    (root / "empty").touch()
    (root / "big.bin").write_bytes(rng.randbytes(3_000_017))
    with (root / "holes").open("wb") as file:
        for at in range(0, 40, 3):
            file.seek(at * 50_000)
            file.write(rng.randbytes(5000))
        file.seek(2_999_999)  # with inline_data, mke2fs cuts a file that ends in a hole
        file.write(b"e")
    (root / "many").mkdir()
    for number in range(700):
        (root / "many" / f"file-{number:04}-with-a-longer-name").write_text(str(number))
    (root / "odd").mkdir()
    for name in ODD:
        (root / "odd" / name).write_text("odd")
    (root / "links").mkdir()
    for name, target in (
        ("short", "../etc/hosts"), ("absolute", "/etc/hosts"), ("long", "/" + "d/" * 100 + "x"), ("loop", "loop"),
        ("folder", "/etc"), ("out", "../../../../../../etc/passwd"),
    ):  # fmt: skip
        (root / "links" / name).symlink_to(target)
    os.utime(root / "etc/hosts", (1_600_000_000, 1_600_000_000))


def image(folder: Path, *options: str, size: str = "24M", source: Path | None = None) -> bytes:
    """A file system made by mkfs from the tree."""
    root = source or folder / "tree"
    if source is None and not root.exists():
        tree(root)
    path = folder / "image"
    path.unlink(missing_ok=True)
    command = ["mkfs.ext4", "-q", "-F", "-E", "root_owner=0:0", *options, "-d", str(root), str(path), size]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return path.read_bytes()


def content_of(path: Path) -> dict[str, object]:
    """Everything about a tree that must be kept."""
    found: dict[str, object] = {}
    for at in sorted(path.rglob("*")):
        status = at.lstat()
        name = str(at.relative_to(path))
        if at.is_symlink():
            found[name] = str(at.readlink())
        elif at.is_dir():
            found[name] = "folder"
        else:
            found[name] = (at.read_bytes(), stat.S_IMODE(status.st_mode) & 0o777, int(status.st_mtime))
    return found


@pytest.fixture
def points(tmp_path: Path) -> Points:
    (tmp_path / "repository").mkdir()
    return Points(tmp_path / "repository")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-b", "1024"),
        ("-b", "4096", "-O", "^64bit,^metadata_csum"),
        ("-O", "^extent,^flex_bg,^64bit"),
        ("-b", "1024", "-O", "^extent,^has_journal,^64bit,^dir_index,^filetype", "-I", "128"),
        ("-O", "inline_data"),
        ("-b", "1024", "-O", "meta_bg,^resize_inode"),
        ("-O", "encrypt,casefold,large_dir"),
        ("-t", "ext2"),
        ("-t", "ext3"),
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_every_kind_of_file_system(tmp_path: Path, points: Points, options: tuple[str, ...]) -> None:
    folder = make_point(points, image(tmp_path, *options))
    (tmp_path / "out").mkdir()
    with files_of(folder) as files:
        done = files.extract("/", tmp_path / "out")
    (tmp_path / "out" / "lost+found").rmdir()
    assert content_of(tmp_path / "out") == content_of(tmp_path / "tree")
    assert done.skipped == [] and done.links == 6 and done.files == 700 + 6 + len(ODD)
    assert (tmp_path / "out/holes").stat().st_blocks < 2000, "holes stay holes"
    assert not (tmp_path / "out/etc/tool").stat().st_mode & stat.S_ISUID


def test_lists_as_debugfs_does(tmp_path: Path, points: Points) -> None:
    folder = make_point(points, image(tmp_path))
    with files_of(folder) as files:
        for path in ("/", "/many", "/etc", "/links"):
            run = subprocess.run(
                ["debugfs", "-R", f"ls -p {path}", tmp_path / "image"], capture_output=True, check=True
            )
            lines = [line.split("/") for line in run.stdout.decode().splitlines() if line.startswith("/")]
            theirs = {(f[5], f[2][-3:], int(f[6] or 0)) for f in lines if f[5] not in (".", "..")}
            mine = {
                (e.name, f"{e.mode:o}"[-3:].rjust(3, "0"), 0 if e.kind == "folder" else e.size)
                for e in files.list(path)
            }
            assert mine == theirs


def test_paths(tmp_path: Path, points: Points) -> None:
    folder = make_point(points, image(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    with files_of(folder) as files:
        (entry,) = files.list("links/folder/../etc/./hosts")
        assert entry.to_dict() == {
            "name": "hosts", "kind": "file", "size": 20, "mode": "0644", "mtime": 1_600_000_000, "target": None
        }  # fmt: skip
        assert {e.name: e.target for e in files.list("links")}["out"] == "../../../../../../etc/passwd"
        assert [e.name for e in files.list("../../links/folder")] == ["hosts", "secret", "tool"]
        for wrong in ("/etc/nothing", "/etc/hosts/x", "links/loop", "links/out"):
            with pytest.raises(PathNotFound):
                files.list(wrong)
        assert files.extract("/etc/hosts", out).files == 1
        assert (out / "hosts").read_text() == "127.0.0.1 localhost\n"
        with pytest.raises(FileNotWritten, match="exists"):
            files.extract("/etc/hosts", out)
        assert files.extract("links/out", out).links == 1 and (out / "out").is_symlink()
        with pytest.raises(FileNotWritten):
            files.extract("/etc", tmp_path / "nowhere")


def test_any_point_of_a_chain(tmp_path: Path, points: Points) -> None:
    contents = [image(tmp_path)]
    (tmp_path / "tree/etc/hosts").write_text("changed\n")
    (tmp_path / "tree/new").write_text("new\n")
    contents.append(image(tmp_path))
    made = make_chain(points, contents)
    for folder, text in zip(made, ("127.0.0.1 localhost\n", "changed\n"), strict=True):
        out = tmp_path / folder.name
        out.mkdir()
        with files_of(folder) as files:
            files.extract("/etc/hosts", out)
        assert (out / "hosts").read_text() == text


def test_damage_leaves_no_half_file(tmp_path: Path, points: Points) -> None:
    folder = make_point(points, image(tmp_path))
    system = Ext4(Image((tmp_path / "image").read_bytes()))
    inode, _ = system.resolve("/big.bin")
    _, physical, _ = next(system._extents(inode.block, inode, 5))
    cluster = physical * system.block // 65536 + 20
    flip(folder / "disk-2000.qcow2", places(folder / "disk-2000.qcow2")[cluster][0] + 5)
    (tmp_path / "out").mkdir()
    with files_of(folder) as files:
        with pytest.raises(Damaged, match=f"offset {cluster * 65536}"):
            files.extract("/big.bin", tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []
        files.extract("/etc", tmp_path / "out")


def renamed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new) and data.count(old) >= 1
    return data.replace(old, new)


@pytest.mark.parametrize("name", [b"../../../evil", b"/tmp/evilfile", b"nul\0inside.."])
def test_names_that_would_escape(tmp_path: Path, name: bytes) -> None:
    root = tmp_path / "small"
    (root / "d").mkdir(parents=True)
    (root / "d" / "innocent-name").write_text("x")
    data = renamed(
        image(tmp_path, "-O", "^metadata_csum", size="2M", source=root), b"innocent-name", name.ljust(13, b"x")
    )
    points = Points(tmp_path)
    folder = make_point(points, data)
    out = tmp_path / "deep" / "er" / "out"
    out.mkdir(parents=True)
    with files_of(folder) as files, pytest.raises(FormatError, match="a name that is none"):
        files.extract("/", out)
    assert not list(tmp_path.glob("**/*evil*")) and not Path("/tmp/evilfile").exists()


def test_a_link_and_a_folder_of_one_name(tmp_path: Path) -> None:
    """A crafted folder lists `aa` twice: a link to elsewhere, then a folder whose file must not land there."""
    root, outside = tmp_path / "small", tmp_path / "outside"
    (root / "ab").mkdir(parents=True)
    outside.mkdir()
    (root / "ab" / "file").write_text("x")
    (root / "aa").symlink_to(outside)
    data = image(tmp_path, "-O", "^metadata_csum", size="2M", source=root)
    data = renamed(data, struct.pack("<BB2s", 2, 2, b"ab"), struct.pack("<BB2s", 2, 2, b"aa"))
    folder = make_point(Points(tmp_path), data)
    (tmp_path / "out").mkdir()
    with files_of(folder) as files, pytest.raises(VadplabError, match="exists"):
        files.extract("/", tmp_path / "out")
    assert list(outside.iterdir()) == []


def test_noise_never_hangs_or_crashes(tmp_path: Path) -> None:
    """Damaged metadata (which digests would stop earlier): always an error of the catalogue, or an answer."""
    root = tmp_path / "small"
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/file").write_bytes(b"x" * 70_000)
    data = image(tmp_path, size="2M", source=root)
    rng = random.Random(11)
    outcomes = set()
    for turn in range(300):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 3, 20))):
            broken[rng.randrange(1024, 400_000 if turn % 2 else 2048)] = rng.randrange(256)
        try:
            system = open_system(Image(broken))
            todo = [(system.resolve("/")[0], 0)]
            for inode, depth in todo:
                for _, number in system.entries(inode):
                    found = system.inode(number)
                    if found.kind == "folder" and depth < 3 and len(todo) < 50:
                        todo.append((found, depth + 1))
                    elif found.kind == "file" and found.size < 1 << 24:
                        sum(len(piece) for _, piece in system.pieces(found))
            outcomes.add("read")
        except VadplabError as exc:
            outcomes.add(exc.code)
    assert {"read", "store.format", "files.system"} <= outcomes


def test_partitions(tmp_path: Path) -> None:
    root = tmp_path / "small"
    (root / "etc").mkdir(parents=True)
    (root / "etc/name").write_text("partitioned")
    data = image(tmp_path, size="2M", source=root)
    starts = (2048, 4096)
    for label in ("dos", "gpt"):
        whole = bytearray(8 << 20)
        whole[510:512] = b"\x55\xaa"
        if label == "dos":
            for number, start in enumerate(starts):
                entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", start, 1024)
                whole[446 + 16 * number : 462 + 16 * number] = entry
        else:
            whole[512:520] = b"EFI PART"
            whole[512 + 72 : 512 + 88] = struct.pack("<QII", 2, 128, 128)
            for number, start in enumerate(starts):
                at = 1024 + 128 * number
                whole[at : at + 48] = b"t" * 16 + b"u" * 16 + struct.pack("<QQ", start, start + 1023)
        whole[4096 * 512 : 4096 * 512 + len(data)] = data
        assert list(partitions(Image(whole))) == [(1, 2048 * 512), (2, 4096 * 512)]
        for partition in (None, 2):
            system = open_system(Image(whole), partition)
            inode, _ = system.resolve("/etc/name")
            assert next(system.pieces(inode)) == (0, b"partitioned")
        with pytest.raises(NoFileSystem):
            open_system(Image(whole), 1)
        with pytest.raises(PartitionUnknown, match=r"no partition 3 \(there are: 1, 2\)"):
            open_system(Image(whole), 3)


@pytest.mark.parametrize("data", [b"", bytes(4096), random.Random(1).randbytes(1 << 20)])
def test_no_file_system(data: bytes) -> None:
    with pytest.raises(NoFileSystem):
        open_system(Image(data))
