# SPDX-License-Identifier: MIT
"""A real PostgreSQL server on loopback for tests: initdb in a folder of its own, TLS, ended with the test."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.model.connect import Place
from engine.model.postgres import Postgres
from lab.errors import ComponentMissing
from lab.realise import postgres
from tests.engine.machines import REPOSITORY
from tests.engine.pki import Pki

PASSWORD = "S3cret-of-the-database"
NAME = "config-db"


def installed() -> bool:
    try:
        postgres.binaries()
    except ComponentMissing:
        return False
    return True


def image() -> str | None:
    """A PostgreSQL image that a Docker engine of this machine has; nothing is pulled for a test."""
    import docker

    try:
        client = docker.from_env(timeout=5)
    except docker.errors.DockerException:
        return None
    try:
        tags = [tag for found in client.images.list(name="postgres") for tag in found.tags]
        return tags[0] if tags else None
    except docker.errors.DockerException:
        return None
    finally:
        client.close()


@contextmanager
def container(folder: Path, tag: str) -> Iterator[Place]:
    """PostgreSQL in a container (without TLS: the image has no certificate of ours)."""
    from testcontainers.community.postgres import PostgresContainer

    from engine.model.connect import place

    password = folder / "password"
    password.write_text(PASSWORD)
    with PostgresContainer(tag, username="vadplab", password=PASSWORD, dbname="vadplab", driver=None) as made:
        address = socket.gethostbyname(made.get_container_host_ip())
        yield place(f"postgresql://vadplab@{address}:{made.get_exposed_port(5432)}/vadplab", password=password)


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
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
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
