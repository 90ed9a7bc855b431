# SPDX-License-Identifier: MIT
"""The lab CA and the hosts' certificates, checked by OpenSSL through Python's ssl module and by ssh-keygen."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from lab import pki

HOSTS = {"vcenter": "10.77.6.10", "proxy-1": "10.77.3.10"}


def handshake(folder: Path, server: str, client: str, name: str) -> dict[str, object]:
    """Mutual TLS over a socket pair; the server's certificate as the client saw it."""
    left, right = socket.socketpair()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
    serving.load_cert_chain(folder / f"{server}.pem")
    serving.verify_mode = ssl.CERT_REQUIRED
    serving.verify_flags |= ssl.VERIFY_X509_STRICT
    asking = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    asking.load_cert_chain(folder / f"{client}.pem")

    def serve() -> None:
        try:
            with serving.wrap_socket(left, server_side=True) as tls:
                tls.recv(1)
        except (ssl.SSLError, OSError):
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with asking.wrap_socket(right, server_hostname=name) as tls:
            tls.send(b"x")
            seen = tls.getpeercert()
            assert seen is not None
            return dict(seen)
    finally:
        right.close()
        thread.join(5)


def test_hosts_know_each_other(tmp_path: Path) -> None:
    pki.ensure(tmp_path, HOSTS)
    seen = handshake(tmp_path, "vcenter", "proxy-1", "vcenter")
    assert seen["subjectAltName"] == (("DNS", "vcenter"), ("IP Address", "10.77.6.10"))
    assert handshake(tmp_path, "vcenter", "proxy-1", "10.77.6.10")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, "vcenter", "proxy-1", "esxi-1")


def test_keys_are_private(tmp_path: Path) -> None:
    pki.ensure(tmp_path, HOSTS)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"ca.pem": 0o644, "ca.key": 0o600, "vcenter.pem": 0o600, "proxy-1.pem": 0o600}


def test_reused_until_it_no_longer_fits(tmp_path: Path) -> None:
    pki.ensure(tmp_path, HOSTS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    pki.ensure(tmp_path, HOSTS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    pki.ensure(tmp_path, {**HOSTS, "vcenter": "10.77.6.11"})
    assert (tmp_path / "vcenter.pem").read_bytes() != before["vcenter.pem"]
    assert (tmp_path / "proxy-1.pem").read_bytes() == before["proxy-1.pem"]


@pytest.mark.parametrize("damage", ["ca.pem", "ca.key"])
def test_new_authority_renews_everything(tmp_path: Path, damage: str) -> None:
    pki.ensure(tmp_path, HOSTS)
    before = (tmp_path / "vcenter.pem").read_bytes()
    (tmp_path / damage).write_text("damaged")
    pki.ensure(tmp_path, HOSTS)
    assert (tmp_path / "vcenter.pem").read_bytes() != before
    assert handshake(tmp_path, "vcenter", "proxy-1", "vcenter")


def test_damaged_certificate_is_renewed(tmp_path: Path) -> None:
    pki.ensure(tmp_path, HOSTS)
    other = (tmp_path / "proxy-1.pem").read_bytes()
    (tmp_path / "vcenter.pem").write_bytes(other)  # somebody else's
    pki.ensure(tmp_path, HOSTS)
    assert handshake(tmp_path, "vcenter", "proxy-1", "vcenter")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_ssh_host_key(tmp_path: Path) -> None:
    path = tmp_path / "linux-guest-ssh"
    pki.ensure_ssh_host_key(path)
    derived = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True).stdout
    public = path.with_suffix(".pub").read_text()
    assert derived.split()[:2] == public.split()[:2]
    pki.ensure_ssh_host_key(path)
    assert path.with_suffix(".pub").read_text() == public
    assert path.stat().st_mode & 0o777 == 0o600
