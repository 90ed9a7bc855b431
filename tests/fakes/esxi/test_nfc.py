# SPDX-License-Identifier: MIT
"""Disks and files through authd and NFC, as an independent client sees them."""

from __future__ import annotations

import random
import ssl
import struct
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import pytest

from tests.fakes.esxi.conftest import SIZE, Host
from tests.fakes.esxi.nfc_client import NfcError, session


@pytest.mark.parametrize("service", ["vpxa-nfc", "nfc", "vpxa-nfcssl", "nfcssl"])
@pytest.mark.parametrize("eager", [False, True], ids=["waits", "eager"])
def test_reads_the_whole_disk(esxi: Host, service: str, eager: bool) -> None:
    with session(esxi.address, esxi.ticket(), service=service, eager=eager, old=eager) as nfc:
        assert nfc.version == 11
        assert struct.unpack_from("<I", nfc.parameters, 16)[0] == 1
        handle, capacity = nfc.open(esxi.path)
        assert capacity == SIZE // 512
        data = b"".join(nfc.read(handle, offset, 1 << 20) for offset in range(0, SIZE, 1 << 20))
        assert data == esxi.image.read_bytes()
        nfc.close_file(handle)
        nfc.close()
    closed = esxi.journal("close")[-1]
    assert (closed["bytes_read"], closed["bytes_written"], closed["service"]) == (SIZE, 0, service)


@pytest.mark.parametrize("eager", [False, True], ids=["waits", "eager"])
@pytest.mark.parametrize("order", [*permutations((43, 33, 51)), (33, 51), (51, 33)])
def test_every_order_of_the_first_messages(esxi: Host, eager: bool, order: tuple[int, ...]) -> None:
    with session(esxi.address, esxi.ticket(), eager=eager, order=order) as nfc:
        assert nfc.version == 11
        handle, _ = nfc.open(esxi.path)
        assert nfc.read(handle, 512, 512) == esxi.image.read_bytes()[512:1024]
        nfc.close()


@pytest.mark.parametrize("service", ["nfc", "nfcssl"])
def test_a_client_that_sends_a_byte_at_a_time(esxi: Host, service: str) -> None:
    with session(esxi.address, esxi.ticket(write=True), service=service, step=1, eager=True) as nfc:
        handle, _ = nfc.open(esxi.path, write=True)
        nfc.write(handle, 512, b"slow" * 128)
        assert nfc.read(handle, 512, 512) == b"slow" * 128
        nfc.close()


@pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_tls_versions(esxi: Host, maximum: ssl.TLSVersion) -> None:
    with session(esxi.address, esxi.ticket(), service="nfcssl", maximum=maximum) as nfc:
        handle, _ = nfc.open(esxi.path)
        assert nfc.read(handle, 512, 1024) == esxi.image.read_bytes()[512:1536]
        nfc.close()


def test_many_reads_in_flight(esxi: Host) -> None:
    with session(esxi.address, esxi.ticket()) as nfc:
        handle, _ = nfc.open(esxi.path)
        ops = [(nfc.send_read(handle, at, 100 * 512), at) for at in range(0, 64 * 512, 512)]
        image = esxi.image.read_bytes()
        for op, at in ops:
            got = b"".join(data for _, _, data in nfc.fragments(op, at, 100 * 512))
            assert got == image[at : at + 100 * 512]
        nfc.close()


@pytest.mark.parametrize("compression", [1, 2, 3], ids=["zlib", "fastlz-falls-back", "skipz-falls-back"])
def test_compressed_reads(esxi: Host, compression: int) -> None:
    with esxi.image.open("r+b") as image:
        image.write(bytes(256 << 10))
    with session(esxi.address, esxi.ticket()) as nfc:
        handle, _ = nfc.open(esxi.path)
        op = nfc.send_read(handle, 0, 512 << 10, compression)
        data = bytearray(512 << 10)
        kinds = set()
        for place, kind, piece in nfc.fragments(op, 0, 512 << 10):
            data[place : place + len(piece)] = piece
            kinds.add((place < 256 << 10, kind))
        assert data == esxi.image.read_bytes()[: 512 << 10]
        # zeros shrink, random bytes do not and stay raw
        assert kinds == ({(True, 1), (False, 0)} if compression == 1 else {(True, 0), (False, 0)})
        nfc.close()


@pytest.mark.parametrize("service", ["nfc", "nfcssl"])
@pytest.mark.parametrize("compression", [0, 1, 2])
def test_writes_reach_the_disk(esxi: Host, service: str, compression: int) -> None:
    data = random.Random(1).randbytes(150 << 10) + bytes(50 << 10)
    with session(esxi.address, esxi.ticket(write=True), service=service) as nfc:
        handle, _ = nfc.open(esxi.path, write=True)
        nfc.write(handle, 1 << 20, data, compression=compression)
        assert nfc.read(handle, (1 << 20) - 512, len(data) + 1024)[512:-512] == data
        nfc.close_file(handle)
        nfc.close()
    assert esxi.image.read_bytes()[1 << 20 :][: len(data)] == data
    assert esxi.journal("close")[-1]["bytes_written"] == len(data)


@pytest.mark.parametrize("kind", [0, 1])
def test_configuration_file_then_disk_on_one_connection(esxi: Host, kind: int) -> None:
    with session(esxi.address, esxi.ticket()) as nfc:
        handle, size = nfc.open(esxi.vmx, kind=kind)
        text = nfc.read(handle, 0, size).decode()
        assert text == esxi.storage.files["vm1/vm1.vmx"]
        nfc.close_file(handle)
        handle, size = nfc.open(esxi.path, kind=kind)
        assert b"createType" in nfc.read(handle, 0, size)
        disk, _ = nfc.open(esxi.path)
        assert nfc.read(disk, 0, 512) == esxi.image.read_bytes()[:512]
        nfc.close()
    assert [e["path"] for e in esxi.journal("open")] == [esxi.vmx, esxi.path, esxi.path]


def test_disk_database_key_is_not_found(esxi: Host) -> None:
    with session(esxi.address, esxi.ticket()) as nfc:
        handle, _ = nfc.open(esxi.path)
        for payload in (struct.pack("<QII", handle, 11, 0), struct.pack("<QII", handle, 0, 11)):
            assert nfc.call(11, payload, b"adapterType") == bytes(16)
        nfc.close()


def test_a_smaller_announced_buffer_is_obeyed(esxi: Host) -> None:
    with session(esxi.address, esxi.ticket()) as nfc:
        nfc.call(2, struct.pack("<4I", 16384, 0, 0, 0))
        handle, _ = nfc.open(esxi.path)
        op = nfc.send_read(handle, 0, 65536)
        assert [len(data) for _, _, data in nfc.fragments(op, 0, 65536)] == [16384] * 4
        nfc.close()


def _refused(nfc_code: int, attempt: object) -> None:
    with pytest.raises(NfcError) as caught:
        attempt()  # type: ignore[operator]
    assert caught.value.code == nfc_code, caught.value


def test_refusals_keep_the_session(esxi: Host) -> None:
    with session(esxi.address, esxi.ticket()) as nfc:
        _refused(0x0B, lambda: nfc.open(esxi.path, write=True))
        _refused(13, lambda: nfc.open("[datastore1] other/other.vmdk"))
        _refused(13, lambda: nfc.open("[datastore2] vm1/vm1.vmdk"))
        _refused(13, lambda: nfc.open("[datastore1] vm1x/vm1.vmdk"))
        _refused(3, lambda: nfc.open("[datastore1] vm1/../vm2/vm2.vmdk"))
        _refused(3, lambda: nfc.open("/vmfs/volumes/datastore1/vm1/vm1.vmdk"))
        _refused(4, lambda: nfc.open("[datastore1] vm1/missing.vmdk"))
        _refused(4, lambda: nfc.open("[datastore1] vm1/missing.vmx", kind=0))
        _refused(9, lambda: nfc.open(esxi.path, kind=7))
        _refused(3, lambda: nfc.read(12345, 0, 512))
        _refused(3, lambda: nfc.close_file(12345))
        _refused(6, lambda: nfc.call(99, b""))
        handle, _ = nfc.open(esxi.path)
        _refused(5, lambda: nfc.open(esxi.path))
        _refused(3, lambda: nfc.read(handle, SIZE - 512, 1024))
        _refused(3, lambda: nfc.read(handle, 1, 512))
        _refused(6, lambda: nfc.read(handle, 0, 512, compression=9))
        _refused(0x0B, lambda: nfc.write(handle, 0, bytes(200 << 10)))
        assert nfc.read(handle, 0, 512) == esxi.image.read_bytes()[:512]
        nfc.close()
    assert esxi.journal("refused")[0]["code"] == 0x0B


def test_bad_writes_are_refused_once(esxi: Host) -> None:
    with session(esxi.address, esxi.ticket(write=True)) as nfc:
        handle, _ = nfc.open(esxi.path, write=True)
        _refused(3, lambda: nfc.write(handle, SIZE - 65536, bytes(256 << 10)))
        packed = b"not zlib"
        op = nfc.send(7, struct.pack("<QIIQIIIII", handle, 0, 1, 0, 512, 0, 512, len(packed), 0), packed)
        _refused(3, lambda: nfc.receive(op, 7))
        for compression, code in ((2, 3), (3, 6)):
            op = nfc.send(7, struct.pack("<QIIQIIIII", handle, 0, compression, 0, 512, 0, 512, 8, 0), packed)
            _refused(code, lambda op=op: nfc.receive(op, 7))
        head = struct.pack("<QIIQIIIII", handle, 0, 2, 0, 512, 0, 512, 512, 0)  # FastLZ that fell back to raw
        nfc.receive(nfc.send(7, head, b"x" * 512), 7)
        assert nfc.read(handle, 0, 512) == b"x" * 512
        nfc.close()


def test_a_client_that_dies_in_the_middle_of_a_write(esxi: Host) -> None:
    before = esxi.image.read_bytes()[: 128 << 10]
    with session(esxi.address, esxi.ticket(write=True)) as nfc:
        handle, _ = nfc.open(esxi.path, write=True)
        header = struct.pack("<QIIQIIIII", handle, 0, 0, 0, 128 << 10, 0, 65536, 65536, 0)
        nfc.send(7, header, b"half a fragment")
    with session(esxi.address, esxi.ticket(write=True)) as nfc:
        handle, _ = nfc.open(esxi.path, write=True)
        assert nfc.read(handle, 0, 128 << 10) == before
        nfc.write(handle, 0, b"next" * 128)
        nfc.close()
    assert esxi.image.read_bytes()[:512] == b"next" * 128


def test_nothing_is_read_and_the_last_sector_is(esxi: Host) -> None:
    with session(esxi.address, esxi.ticket()) as nfc:
        handle, _ = nfc.open(esxi.path)
        assert struct.unpack("<QIIQIIIII", nfc.receive(nfc.send_read(handle, 512, 0), 7))[3:8] == (512, 0, 0, 0, 0)
        assert nfc.read(handle, SIZE - 512, 512) == esxi.image.read_bytes()[-512:]
        _refused(3, lambda: nfc.read(handle, SIZE, 512))
        nfc.close()


def test_wrong_magic_ends_the_connection(esxi: Host) -> None:
    with session(esxi.address, esxi.ticket()) as nfc:
        nfc.stream.send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(EOFError):
            nfc.stream.read(1)
    assert "magic" in esxi.journal("close")[-1]["reason"]


def test_many_clients_at_once(esxi: Host) -> None:
    image = esxi.image.read_bytes()

    def reader(number: int) -> bool:
        service = "nfcssl" if number % 2 else "nfc"
        with session(esxi.address, esxi.ticket(), service=service) as nfc:
            handle, _ = nfc.open(esxi.path)
            offsets = random.Random(number).sample(range(0, SIZE - (256 << 10), 512), 20)
            same = all(nfc.read(handle, at, 256 << 10) == image[at : at + (256 << 10)] for at in offsets)
            nfc.close()
            return same

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(reader, range(8)))
    assert len(esxi.journal("close")) == 8
