# SPDX-License-Identifier: MIT
"""A run's capture as other tools read it: nothing malformed, decrypted with its key log; and no secret in any file."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import yaml

from tests.e2e import harness
from tests.e2e.harness import Document, Lab, Run, tshark

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab that captures whole packets."""
    home = tmp_path_factory.mktemp("full")
    topology = harness.drill_topology(home)
    with harness.up(home, "full", "--topology", str(topology), "--capture", "full") as lab:
        yield lab


@pytest.fixture(scope="module")
def backup(full: Lab) -> tuple[Document, Run]:
    """One job in that lab."""
    return full.job(code=0)


def test_a_full_capture_loses_nothing(full: Lab, backup: tuple[Document, Run]) -> None:
    document, run = backup
    about = full.done("pcap", run.folder.name)
    assert (about["mode"], about["dropped"], about["complete"], about["annotated"]) == ("full", 0, True, True)
    assert about["received"] > 0
    assert set(document["invariants"].values()) == {"held"}


def test_nothing_is_malformed(full: Lab, backup: tuple[Document, Run], drill: Lab) -> None:
    _, run = backup
    assert malformed(run.folder / "capture.pcapng", run.folder / "keys.log") == []
    # Cut packets end early, which is not malformed: tshark knows from the capture length.
    _, short = drill.job(code=0)
    assert malformed(short.folder / "capture.pcapng") == []
    lengths = tshark(short.folder / "capture.pcapng", "tcp", ("frame.cap_len", "frame.len"))
    assert max(int(kept) for kept, _ in lengths) <= 276
    assert max(int(length) for _, length in lengths) > 276


def test_a_network_that_loses_packets_changes_no_verdict(full: Lab) -> None:
    """One packet in a hundred goes missing behind the firewall: what is sent again is the same connection, under the same rule."""
    nft(full, "add table inet lossy; add chain inet lossy lose { type filter hook forward priority 10; }")
    try:
        nft(full, "add rule inet lossy lose numgen random mod 100 == 0 counter drop")
        document, run = full.job("--full", code=0)
        lost = re.search(r"counter packets (\d+)", nft(full, "list table inet lossy"))
    finally:
        nft(full, "delete table inet lossy")
    assert lost is not None
    assert int(lost[1]) > 10
    assert set(document["invariants"].values()) == {"held"}
    assert malformed(run.folder / "capture.pcapng", run.folder / "keys.log") == []


def test_443_decrypts_to_the_vsphere_api(full: Lab, backup: tuple[Document, Run]) -> None:
    _, run = backup
    vcenter = full.address("vcenter")
    wanted = f"http.request.method == POST && ip.dst == {vcenter}"
    for initiator in ("backup-server", "proxy-1"):
        texts = decrypted(run, f"{wanted} && ip.src == {full.address(initiator)}", "http.request.uri")
        assert "/sdk" in texts, f"no SOAP call of {initiator} can be read"
    # As many calls as vCenter's own journal has; forwarded packets are in the capture twice.
    bodies = decrypted(run, f"{wanted} && ip.src == {full.address('proxy-1')}", "http.file_data")
    assert any("NfcGetVmFiles" in unhex(body) or "Nfc" in unhex(body) for body in bodies)
    assert encrypted_only(run, wanted) == []


@pytest.mark.parametrize(
    ("what", "port", "initiator", "responder"),
    [
        ("transport service", "tcp.port == 6162", "backup-server", "proxy-1"),
        ("mover control", "tcp.port >= 2500 && tcp.port <= 3300", "backup-server", "proxy-1"),
        ("mover data", "tcp.port >= 2500 && tcp.port <= 3300", "proxy-1", "repository-1"),
        ("console", "tcp.port == 9392", "console", "backup-server"),
    ],
)
def test_engine_connections_decrypt(
    full: Lab, backup: tuple[Document, Run], what: str, port: str, initiator: str, responder: str
) -> None:
    """The payload after TLS is our wire format: a length, then msgpack."""
    _, run = backup
    pair = f"ip.src == {full.address(initiator)} && ip.dst == {full.address(responder)} && {port}"
    payloads = decrypted(run, f"{pair} && data.data", "data.data")
    assert payloads, f"{what}: no packet decrypts"
    first = bytes.fromhex(payloads[0].split(",")[0])
    length = int.from_bytes(first[:4])
    assert 0 < length <= len(first) - 4, "a frame has its length before it"
    message = msgpack.unpackb(first[4 : 4 + length])
    if what == "mover data":
        assert isinstance(message, list)
        assert len(payloads) > 10
    else:
        assert {"id", "method", "params"} <= set(message)
    assert encrypted_only(run, f"{pair} && data.data") == [], "it is readable without keys"


def test_packet_comments_name_rule_and_step(backup: tuple[Document, Run]) -> None:
    _, run = backup
    comments = tshark(run.folder / "capture.pcapng", "tcp.dstport == 902 && tcp.flags.syn == 1", ("frame.comment",))
    assert comments
    assert all(re.search(r"rule=H5 row=H5 step=19 verdict=allowed", comment) for (comment,) in comments)


def test_no_secret_in_any_file(full: Lab, backup: tuple[Document, Run], tmp_path: Path) -> None:
    """Passwords stand where they are configured and nowhere else; tickets and cookies stand nowhere."""
    document, run = backup
    point = document["restore_points"][1]
    full.done("restore", point["point"], "--vm", point["vm"], "--disk", "2", "--to", str(tmp_path / "disk"))
    full.done("firewall", "block", "H1", "--with", "reset")
    full.job(code=1)
    full.done("firewall", "reset")
    full.done("infra", "rescan")
    secrets = passwords(full) | tickets(full, run) | cookies(full, run)
    assert len(secrets) > 2 + len(tickets(full, run)) > 4
    searched = {path.name for path in evidence_files(full.folder.path)}
    assert {"events.jsonl", "journal.jsonl", "report.json", "flows.json", "supervisor.log", "console.log"} <= searched
    found = [
        f"{path.relative_to(full.folder.path)}: {kind}"
        for path in evidence_files(full.folder.path)
        for kind, secret in ((k, s) for s, k in secrets.items())
        if secret.encode() in path.read_bytes()
    ]
    assert found == []


def test_passwords_are_encrypted_in_the_configuration_database(full: Lab, backup: tuple[Document, Run]) -> None:
    databases = [
        path
        for path in (full.folder.path / "hosts" / "backup-server" / "var").rglob("*")
        if path.is_file() and path.read_bytes()[:15] == b"SQLite format 3"
    ]
    assert databases
    for path in databases:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            dump = "\n".join(map(str, database.iterdump()))
        for password in passwords(full):
            assert password not in dump
            assert password.encode() not in path.read_bytes()


def nft(lab: Lab, command: str) -> str:
    """What the router's `nft` prints."""
    done = harness.run_text(lab.home, "--lab", lab.name, "exec", "router", "--", "nft", command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def malformed(capture: Path, keys: Path | None = None) -> list[tuple[str, ...]]:
    """Frames that tshark can not read.

    Not among them is what TCP sends again (a host without a core for 200 ms does): where a piece overlaps with one that
    tshark has put into a message already, it calls that a reassembly error, under its "malformed".
    """
    wrong = "_ws.malformed && !(_ws.malformed.reassembly && tcp.analysis.flags)"
    options = ("-o", f"tls.keylog_file:{keys}") if keys is not None else ()
    return tshark(capture, wrong, ("frame.number", "_ws.col.Info"), *options)


def decrypted(run: Run, display_filter: str, field: str) -> list[str]:
    """A field of every packet of a full capture, read with the run's TLS keys."""
    options = ("-o", f"tls.keylog_file:{run.folder / 'keys.log'}")
    return [value for (value,) in tshark(run.folder / "capture.pcapng", display_filter, (field,), *options) if value]


def encrypted_only(run: Run, display_filter: str) -> list[tuple[str, ...]]:
    """What the same filter shows without the keys."""
    return tshark(run.folder / "capture.pcapng", display_filter, ("frame.number",), "-o", "tls.keylog_file:")


def unhex(text: str) -> str:
    """Text of a field that tshark prints in hexadecimal."""
    return bytes.fromhex(text).decode(errors="replace") if re.fullmatch(r"[0-9a-f]+", text) else text


def passwords(lab: Lab) -> dict[str, str]:
    """`{secret: what it is}`: the passwords of the topology."""
    plan = yaml.safe_load(lab.folder.topology_file.read_text())
    guests = {account["password"]: "guest password" for account in plan["backup"]["credentials"]}
    return {plan["vsphere"]["password"]: "vSphere password", **guests}


def tickets(lab: Lab, run: Run) -> dict[str, str]:
    """One-time tickets of the run, from the decrypted replies of vCenter."""
    source = f"http.response && ip.src == {lab.address('vcenter')} && ip.dst == {lab.address('proxy-1')}"
    bodies = "".join(map(unhex, decrypted(run, source, "http.file_data")))
    found = re.findall(r"<sessionId>([^<]+)</sessionId>", bodies)
    assert found, "no ticket in the decrypted traffic"
    return dict.fromkeys(found, "ticket")


def cookies(lab: Lab, run: Run) -> dict[str, str]:
    """Session cookies of the run, from the decrypted replies of vCenter."""
    headers = decrypted(run, f"http.set_cookie && ip.src == {lab.address('vcenter')}", "http.set_cookie")
    found = re.findall(r"vmware_soap_session=\"?([^;\",]+)", "\n".join(headers))
    assert found, "no session cookie in the decrypted traffic"
    return dict.fromkeys(found, "session cookie")


def evidence_files(lab: Path) -> Iterator[Path]:
    """Logs, events, journals, reports: every file but captures, disks, keys and what holds secrets by its purpose."""
    left_out = re.compile(
        r"capture\.pcapng$|topology\.yaml$|inventory\.yaml$|/pki/|/etc/|lun\.img$|/repository/|fakes/guest-[^/]+/password$"
        r"|\.sha256$|/truth/|control\.sock$|keys\.log$"
    )
    for folder, _, names in os.walk(lab):
        for name in names:
            path = Path(folder) / name
            if path.is_file() and not left_out.search(str(path)):
                yield path
