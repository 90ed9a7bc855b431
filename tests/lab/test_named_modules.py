# SPDX-License-Identifier: MIT
"""Every module, file and page of this repository that a page names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab.realise.mounts import CODE

PAGES = [CODE / "README.md", *sorted((CODE / "docs").glob("*.md")), *sorted(CODE.glob("fakes/*/FIDELITY.md"))]
PAGES.remove(CODE / "docs" / "errors.md")  # its codes look like modules, and it is made from the classes
ROOMS = "engine|fakes|lab|firewall_rules|tests|bench|scripts|docs|requirements"
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE_WORDS = re.compile(r"`([^`]+)`|\]\(([^)]+)\)")
PATH = re.compile(rf"(?<![\w/.$-])((?:{ROOMS})/[\w./*-]*[\w*]/?)")
MODULE = re.compile(rf"(?<![\w/.\"-])((?:{ROOMS})(?:\.[a-z_]\w*)+)(?![\w/-])")


def named(page: Path) -> tuple[set[str], set[str]]:
    """(paths, dotted modules) in the code words and links of a page; a word with a <placeholder> names no file of ours."""
    words = ["".join(found) for found in CODE_WORDS.findall(BLOCK.sub("", page.read_text()))]
    words = [word for word in words if "<" not in word]
    return ({p for w in words for p in PATH.findall(w)}, {m for w in words for m in MODULE.findall(w)})


def is_module(name: str) -> bool:
    path = CODE / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def is_name_in_a_module(name: str) -> bool:
    """`engine.errors.from_oserror`: the module and something that it defines."""
    module, _, word = name.rpartition(".")
    file = CODE / (module.replace(".", "/") + ".py")
    return file.is_file() and re.search(rf"\b{word}\b", file.read_text()) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CODE)))
def test_what_a_page_names_exists(page: Path) -> None:
    paths, modules = named(page)
    gone = [path for path in paths if not list(CODE.glob(path.rstrip("/")))]
    gone += [name for name in modules if not is_module(name) and not is_name_in_a_module(name)]
    assert gone == []


def test_the_pages_name_something() -> None:
    """The search finds what the pages are known to name: it has not become blind."""
    assert "lab.realise.supervisor" in named(CODE / "docs" / "architecture.md")[1]
    assert "docs/sequence.md" in named(CODE / "README.md")[0]
