# SPDX-License-Identifier: MIT
"""vcsim in a container without a network: started, found by pid (so that a link can be plugged in), ended.

A container is no child of ours. So it runs with `-i --rm` and vcsim's `-stdinexit`: it ends when whoever holds its
standard input does, and that is the `docker run` of this process, which dies with it (vcsim reference section 2.1).
Either the gateway runs in the container's network namespace (`attach`), or it stays outside and makes its sockets there
(`dial`, which needs root).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import os
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import docker.errors

from fakes.vcenter.simulator import START_DEADLINE, STOP_DEADLINE, SimulatorFailed

LISTEN = ("127.0.0.1", 8989)
_API_DEADLINE = 10
_CLONE_NEWNET = 0x40000000
EMPTY = ("-api-version", "8.0.3.0", "-dc", "0")  # flags for a gateway that builds an inventory
_USER = "10001"  # as the stock image's


def engine_has_image(image: str) -> bool:
    """Whether a Docker engine answers and has that image."""
    try:
        client = docker.from_env(timeout=_API_DEADLINE)
    except docker.errors.DockerException:
        return False
    try:
        client.images.get(image)
    except (docker.errors.DockerException, OSError):
        return False
    finally:
        client.close()
    return True


def build_image(binary: Path, image: str) -> str:
    """Makes an image from nothing but that static binary and a /tmp, which behaves like the stock one; returns its id.

    Raises:
        SimulatorFailed: no engine answers, or it refuses.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
        entry = tar.gettarinfo(str(binary), "vcsim")
        entry.mode, entry.uid, entry.gid, entry.uname, entry.gname = 0o755, 0, 0, "", ""
        with binary.open("rb") as data:
            tar.addfile(entry, data)
    repository, _, tag = image.rpartition(":")
    changes = ['ENTRYPOINT ["/vcsim"]', 'CMD ["-l","0.0.0.0:8989"]', f"USER {_USER}"]
    try:
        client = docker.from_env(timeout=120)
        try:
            client.api.import_image_from_data(archive.getvalue(), repository=repository, tag=tag, changes=changes)
            return str(client.images.get(image).id)
        finally:
            client.close()
    except (docker.errors.DockerException, OSError) as exc:
        raise SimulatorFailed(f"the image {image} can not be made: {exc}") from exc


class DockerVcsim:
    """A running container; `pid` is that of vcsim in it, as this pid namespace sees it (0 if it can not)."""

    def __init__(self, process: asyncio.subprocess.Process, container: str, pid: int, folder: Path) -> None:
        self.process = process
        self.container = container
        self.pid = pid
        self.folder = folder

    host, port = LISTEN

    def dial(self) -> socket.socket:
        """A socket connected to vcsim, made in the container's network namespace. Raises OSError."""
        with ThreadPoolExecutor(1) as thread:  # a thread of its own: the namespace is one of the thread
            return thread.submit(_connect_in, self.pid).result(_API_DEADLINE)

    @property
    def running(self) -> bool:
        """Whether the container lives, as far as its `docker run` knows."""
        return self.process.returncode is None

    async def ended(self) -> int:
        """Waits for its end; returns the exit code."""
        return await self.process.wait()

    async def stop(self) -> None:
        """Ends the container: by closing its standard input, then by `docker kill`."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_DEADLINE)
        except TimeoutError:
            await asyncio.to_thread(_kill, self.container)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), STOP_DEADLINE)
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)


async def start(image: str, username: str, password: str, parent: Path, flags: Sequence[str] = EMPTY) -> DockerVcsim:
    """Starts a container without a network; vcsim listens on `LISTEN` of the container's own loopback.

    Args:
        parent: folder in which its temporary folder is made; whoever removes that removes the password of a killed owner.

    Raises:
        SimulatorFailed: it ended, or did not say that it listens within the deadline.
    """
    folder = Path(tempfile.mkdtemp(prefix="vcsim-docker-", dir=parent))
    secret = folder / "password"
    secret.write_text(password)
    secret.chmod(0o444)  # read by the container's user; the folder above is ours alone
    name = f"vadplab-vcsim-{os.urandom(6).hex()}"
    command = ["docker", "run", "-i", "--rm", "--network", "none", "--name", name]
    command += ["--mount", f"type=bind,src={secret},dst=/password,readonly", image]
    command += ["-tls=false", "-l", f"{LISTEN[0]}:{LISTEN[1]}", "-stdinexit"]
    command += ["-username", username, "-password", "/password", *flags]
    setpriv = shutil.which("setpriv")
    try:
        process = await asyncio.create_subprocess_exec(
            *([setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []),
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as exc:
        shutil.rmtree(folder, ignore_errors=True)
        raise SimulatorFailed(f"docker: {exc.strerror or exc} (apt-get install docker.io)") from exc
    made = DockerVcsim(process, name, 0, folder)
    try:
        await asyncio.wait_for(_listening(process), START_DEADLINE)
        made.pid = await asyncio.to_thread(_pid, name)
    except (TimeoutError, SimulatorFailed, docker.errors.DockerException) as exc:
        await made.stop()
        raise SimulatorFailed(str(exc) or f"the container was silent for {START_DEADLINE:.0f} s") from exc
    return made


async def _listening(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    said = b""
    while line := await process.stdout.readline():
        if b"GOVC_URL=" in line:
            return
        said = line
    raise SimulatorFailed("docker run ended: " + (said.decode(errors="replace").strip() or "it said nothing"))


def _connect_in(pid: int) -> socket.socket:
    # os.setns is newer than Python 3.11
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"entering the container's network namespace: {os.strerror(number)}")
    finally:
        os.close(fd)
    connected = socket.create_connection(LISTEN, timeout=_API_DEADLINE)
    connected.setblocking(False)
    return connected


def _pid(container: str) -> int:
    client = docker.from_env(timeout=_API_DEADLINE)
    try:
        return int(client.api.inspect_container(container)["State"]["Pid"])
    finally:
        client.close()


def _kill(container: str) -> None:
    with contextlib.suppress(docker.errors.DockerException):
        client = docker.from_env(timeout=_API_DEADLINE)
        try:
            client.api.kill(container)
        finally:
            client.close()
