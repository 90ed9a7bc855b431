# SPDX-License-Identifier: MIT
"""A real PostgreSQL server on loopback for tests: initdb in a folder of its own, TLS, ended with the test."""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from engine.model.connect import Place
from engine.model.postgres import Postgres
from lab.errors import ComponentMissing
from lab.realise import postgres
from tests.engine.machines import REPOSITORY
from tests.engine.pki import Pki

PASSWORD = "S3cret-of-the-database"
NAME = "config-db"
MADE = "vadplab-test-postgresql"
_START = """\
set -e
printf %s "$POSTGRES_PASSWORD" >/tmp/password
BIN/initdb -D /data/db -U "$POSTGRES_USER" --pwfile=/tmp/password -A scram-sha-256 -E UTF8 --locale=C --no-sync
echo "CREATE DATABASE $POSTGRES_DB" | BIN/postgres --single -D /data/db postgres
exec BIN/postgres -D /data/db -k /tmp -c listen_addresses=127.0.0.1
"""


def installed() -> bool:
    try:
        postgres.binaries()
    except ComponentMissing:
        return False
    return True


def image() -> str | None:
    """A PostgreSQL image: one that this machine's Docker engine has, else one made from the installed server (none is pulled)."""
    import docker

    try:
        client = docker.from_env(timeout=60)
    except docker.errors.DockerException:
        return None
    try:
        tags = [tag for found in client.images.list(name="postgres") for tag in found.tags]
        if tags:
            return str(tags[0])
        if not installed() or shutil.which("ldd") is None:
            return None
        changes = ["USER 999", 'ENTRYPOINT ["/bin/sh", "/start"]']
        client.api.import_image_from_data(_archive(), repository=MADE, tag="latest", changes=changes)
        return f"{MADE}:latest"
    except docker.errors.DockerException:
        return None
    finally:
        client.close()


def _archive() -> bytes:
    """A root file system with the installed server, what it is linked with, a shell, and a start as the stock image's."""
    folder = postgres.binaries()
    library = folder.parent / "lib"
    programs = [Path("/bin/sh"), *(folder / name for name in ("postgres", "initdb"))]
    files = {path: path for path in programs} | {path: path for path in library.glob("*.so") if "jit" not in path.name}
    for program in programs:
        linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        files |= {Path(word): Path(word) for word in linked.split() if word.startswith("/")}
    share = Path("/usr/share/postgresql", folder.parent.name)
    start = _START.replace("BIN", str(folder))
    texts = {"start": start, "etc/passwd": "postgres:x:999:999::/data:/bin/sh\n"}
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", dereference=True) as tar:
        for name, mode in (("tmp", 0o1777), ("data", 0o777)):
            made = tarfile.TarInfo(name)
            made.type, made.mode = tarfile.DIRTYPE, mode
            tar.addfile(made)
        for name, text in texts.items():
            made = tarfile.TarInfo(name)
            made.size, made.mode = len(text.encode()), 0o755
            tar.addfile(made, io.BytesIO(text.encode()))
        for path in (*files, share, Path("/usr/share/zoneinfo/UTC")):
            tar.add(path, str(path).lstrip("/"))
    return data.getvalue()


@contextmanager
def container(folder: Path, tag: str) -> Iterator[Place]:
    """PostgreSQL in a container (without TLS: the image has no certificate of ours), in the host's network.

    A Docker engine without a bridge cannot publish ports.
    """
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    from engine.model.connect import place

    testcontainers_config.ryuk_disabled = True  # its own helper image cannot be pulled; `with` removes the container
    password = folder / "password"
    password.write_text(PASSWORD)
    port = free_port()
    made = DockerContainer(tag).with_kwargs(network_mode="host")
    for name, value in (("USER", "vadplab"), ("PASSWORD", PASSWORD), ("DB", "vadplab")):
        made = made.with_env(f"POSTGRES_{name}", value)
    with made.with_env("PGPORT", str(port)).with_command("postgres -c listen_addresses=127.0.0.1"):
        deadline = time.monotonic() + 60
        login = f"host=127.0.0.1 port={port} user=vadplab password={PASSWORD} dbname=vadplab connect_timeout=5"
        while True:  # it listens before it lets anyone in
            try:
                psycopg.connect(login).close()
                break
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, made.get_logs()
                time.sleep(0.05)
        yield place(f"postgresql://vadplab@127.0.0.1:{port}/vadplab", password=password)
    if tag.startswith(MADE):
        made.get_docker_client().client.images.remove(tag, force=True)


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


needs_postgres = pytest.mark.skipif(not installed(), reason="no PostgreSQL server is installed (package postgresql)")


class Server:
    """Where it listens, and what a client needs."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.pki = Pki(folder)
        self.password = folder / "password"

    @property
    def url(self) -> str:
        return f"postgresql://vadplab@{NAME}:{self.port}/vadplab"

    @property
    def resolver(self) -> dict[str, str]:
        return {NAME: "127.0.0.1"}

    def place(self, **changes: object) -> Place:
        from dataclasses import replace

        from engine.model.connect import place

        found = place(self.url, password=self.password, ca=self.pki.ca)
        assert isinstance(found.server, Postgres)
        return replace(found, server=replace(found.server, **changes))  # type: ignore[arg-type]

    @property
    def superuser(self) -> str:
        """For the test's own look at the database."""
        return postgres.Cluster(self.folder, self.folder, "", self.port, self.folder, "").conninfo("vadplab")


@contextmanager
def serving() -> Iterator[Server]:
    """A server for some tests; each should use tables of its own or drop them."""
    with tempfile.TemporaryDirectory(prefix="vp-pg-") as name:
        folder = Path(name)
        port = free_port()
        server = Server(folder, port)
        server.pki.identity(NAME)
        (folder / f"{NAME}.pem").chmod(0o600)
        server.password.write_text(PASSWORD + "\n")
        with (folder / "log").open("wb") as log:
            arguments = (
                *("--state", name, "--sockets", name, "--listen", "127.0.0.1", "--port", str(port)),
                *("--certificate", str(folder / f"{NAME}.pem"), "--allow", "127.0.0.1/32"),
                *("--password-file", str(server.password)),
            )
            process = subprocess.Popen(
                [sys.executable, "-m", "lab.realise.postgres", *arguments],
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line, (folder / "log").read_text()
                yield server
            finally:
                process.terminate()
                process.wait(20)
                assert process.stdout is not None
                process.stdout.close()
