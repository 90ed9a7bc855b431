# SPDX-License-Identifier: MIT
"""`config-db`: a real PostgreSQL server in a folder of the lab, for as long as this process lives.

    python -m lab.realise.postgres --state FOLDER --sockets FOLDER --listen ADDRESS --port 5432 --certificate PEM
                                   --password-file FILE --allow ADDRESS/PREFIX

Debian's binaries are used, never its cluster or its user: `initdb` makes a cluster below `--state`, and since root may not
run PostgreSQL, a user namespace of its own shows this process's user under another number (nothing on the host changes,
and files stay the lab's). Only `--allow` may log in over TCP, with TLS and SCRAM; the Unix socket in `--sockets`, a
private folder, is for this process. Ready: the database and its user exist, and TLS is answered on `--listen`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psycopg
from psycopg import sql

from lab.errors import ComponentMissing, ProcessFailed

DATABASE = USER = "vadplab"
SUPERUSER = "postgres"
OTHER_UID = 65534
READY = 30.0
STOPPING = 10.0
PAUSE = 0.02

SETTINGS = {
    "ssl": "on",
    "ssl_min_protocol_version": "TLSv1.3",
    "password_encryption": "scram-sha-256",
    "max_connections": "20",
    "shared_buffers": "16MB",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_connections": "on",
    "tcp_user_timeout": "3000",  # ms: a connection that a firewall cut must not outlive the lab in the kernel
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """One server: its folders, its address, and who may log in."""

    state: Path
    sockets: Path
    listen: str
    port: int
    certificate: Path
    allow: str

    @property
    def data(self) -> Path:
        """The cluster's folder."""
        return self.state / "data"

    def initialise(self, binaries: Path) -> None:
        """Makes the cluster unless it exists; half of one (a killed `initdb`) is made anew. Raises ProcessFailed."""
        if (self.data / "complete").exists():
            return
        shutil.rmtree(self.data, ignore_errors=True)
        self.state.mkdir(parents=True, exist_ok=True)
        made = subprocess.run(
            as_other_user(
                [
                    str(binaries / "initdb"),
                    *("--pgdata", str(self.data), "--username", SUPERUSER, "--encoding", "UTF8", "--no-locale"),
                    *("--auth", "reject", "--no-instructions", "--data-checksums"),
                ]
            ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=READY,
            check=False,
        )
        if made.returncode != 0:
            lines = made.stderr.strip().splitlines() or ["it said nothing"]
            raise ProcessFailed(f"initdb: {lines[-1]}")
        (self.data / "complete").touch()

    def configure(self) -> None:
        """Writes who may log in: this process over the Unix socket, `allow` over TLS."""
        lines = [f"local all {SUPERUSER} trust", f"hostssl {DATABASE} {USER} {self.allow} scram-sha-256"]
        (self.data / "pg_hba.conf").write_text("\n".join(lines) + "\n")
        self.sockets.mkdir(mode=0o700, parents=True, exist_ok=True)

    def command(self, binaries: Path) -> list[str]:
        """The server's command line."""
        settings = {
            **SETTINGS,
            "listen_addresses": self.listen,
            "port": str(self.port),
            "unix_socket_directories": str(self.sockets),
            "ssl_cert_file": str(self.certificate),
            "ssl_key_file": str(self.certificate),
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return as_other_user([str(binaries / "postgres"), "-D", str(self.data), *options], dies_with_parent=True)

    def conninfo(self, database: str = "postgres") -> str:
        """Where this process reaches it."""
        return psycopg.conninfo.make_conninfo(
            host=str(self.sockets), port=self.port, user=SUPERUSER, dbname=database, connect_timeout=5
        )

    def prepare(self, password: str) -> None:
        """Makes the user and the database unless they exist, and sets the user's password."""
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            verifier = connection.pgconn.encrypt_password(password.encode(), USER.encode(), b"scram-sha-256").decode()
            known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [USER]).fetchone()
            verb = sql.SQL("ALTER" if known else "CREATE")
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, sql.Identifier(USER), sql.Literal(verifier))
            )
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                names = sql.Identifier(DATABASE), sql.Identifier(USER)
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(*names))


def binaries() -> Path:
    """The folder of the newest PostgreSQL server. Raises ComponentMissing."""
    versions = [p for p in Path("/usr/lib/postgresql").glob("*/bin/postgres") if (p.parent / "initdb").exists()]
    if versions:
        return max(versions, key=lambda p: float(p.parent.parent.name)).parent
    found = shutil.which("postgres")
    if found and (Path(found).parent / "initdb").exists():
        return Path(found).parent
    raise ComponentMissing("no PostgreSQL server; run: apt-get install -y postgresql")


def as_other_user(command: Sequence[str], *, dies_with_parent: bool = False) -> list[str]:
    """The command as another user than root, in its own user namespace; unchanged for those who are not root."""
    tied = ["setpriv", "--pdeathsig", "QUIT"] if dies_with_parent else []
    if os.geteuid() != 0:
        return [*tied, *command]
    number = str(OTHER_UID)
    return ["unshare", "--user", f"--map-user={number}", f"--map-group={number}", *tied, *command]


def main(argv: list[str]) -> int:
    """Runs until SIGTERM or until the server ends."""
    parser = argparse.ArgumentParser(prog="lab.realise.postgres", description="The configuration database of a lab")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--sockets", type=Path, required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--port", type=int, default=5432)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--password-file", type=Path, required=True)
    parser.add_argument("--allow", required=True)
    given = parser.parse_args(argv)
    cluster = Cluster(given.state, given.sockets, given.listen, given.port, given.certificate, given.allow)
    try:
        return serve(cluster, given.password_file.read_text().strip())
    except (ComponentMissing, ProcessFailed) as exc:
        print(exc.message, file=sys.stderr)
        return exc.exit_code


def serve(cluster: Cluster, password: str) -> int:
    """Starts the server, says when it answers, and ends with it."""
    folder = binaries()
    cluster.initialise(folder)
    cluster.configure()
    server = subprocess.Popen(cluster.command(folder), stdin=subprocess.DEVNULL, stdout=sys.stderr)

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.send_signal(signal.SIGINT)  # fast shutdown: sessions end, everything is written

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        _wait(cluster, server)
        cluster.prepare(password)
        print(f'{{"port": {cluster.port}}}', flush=True)
        return server.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            if server.poll() is None:
                server.send_signal(signal.SIGINT)
        try:
            server.wait(STOPPING)
        except subprocess.TimeoutExpired:
            server.send_signal(signal.SIGQUIT)
            server.wait()


def _wait(cluster: Cluster, server: subprocess.Popen[bytes]) -> None:
    """Returns when the server answers. Raises ProcessFailed."""
    end = time.monotonic() + READY
    while True:
        try:
            psycopg.connect(cluster.conninfo()).close()
            return
        except psycopg.OperationalError as exc:
            if server.poll() is not None:
                raise ProcessFailed(f"postgres ended with {server.returncode} before it was ready") from exc
            if time.monotonic() > end:
                raise ProcessFailed(f"postgres did not answer within {READY:g} s") from exc
        time.sleep(PAUSE)  # between two looks; the deadline is above


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
