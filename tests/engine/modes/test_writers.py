# SPDX-License-Identifier: MIT
"""Every writer against the same statements: a device, and a disk over NFC with a read-write ticket."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.dialer import Dialer
from engine.errors import VadplabError
from engine.events import EventLog
from engine.modes.device import Device, DeviceWriter
from engine.modes.errors import WriteFailed
from engine.modes.network import NetworkSession
from engine.modes.nfc.errors import OpenFailed
from engine.modes.writer import DiskWriter
from tests.engine.modes.esxi import host, sample, ticket

SIZE = (3 << 20) + 512 * 5
WHERE: dict[str, Any] = {"step": "v6", "host": "proxy-2", "target": None, "port": None}


@dataclass
class Subject:
    """A writer on a fresh disk that reads as zeros, and what the disk holds afterwards."""

    open: Callable[[], DiskWriter]
    image: Path


def session(announcement: dict[str, Any], mode: Any, *, write: bool = True) -> NetworkSession:
    given = ticket(announcement, session=announcement["write_tickets"].pop()) if write else ticket(announcement)
    return NetworkSession.connect(Dialer(EventLog(None, host="proxy-1", process="test")), given, mode)


@pytest.fixture(params=["device", "nbd", "nbdssl"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.truncate(SIZE)
    if request.param == "device":
        yield Subject(lambda: DeviceWriter(Device(image, write=True, where=WHERE), SIZE), image)
        return
    with host(image) as announcement:
        yield Subject(
            lambda: session(announcement, request.param).open_writer(announcement["path"], SIZE, step="v7"), image
        )


def test_what_is_written_is_there(subject: Subject) -> None:
    content = sample(SIZE)
    places = list(range(0, SIZE, 200_192))
    random.Random(1).shuffle(places)
    failures: list[BaseException] = []
    with subject.open() as writer:
        assert writer.capacity == SIZE
        view = memoryview(content)

        def work(mine: list[int]) -> None:
            try:
                for at in mine:
                    writer.write(at, view[at : at + 200_192])
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=work, args=(places[n::3],)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        writer.flush()
    assert not failures
    assert subject.image.read_bytes() == content


def test_a_range_outside_the_disk_is_refused(subject: Subject) -> None:
    with subject.open() as writer:
        for offset, length in ((SIZE, 512), (SIZE - 512, 1024), (-512, 512), (1, 512), (0, 100), (0, 0)):
            with pytest.raises(ValueError):
                writer.write(offset, memoryview(bytes(length)))


def test_close_may_be_repeated_and_ends_writing(subject: Subject) -> None:
    writer = subject.open()
    writer.close()
    writer.close()
    with pytest.raises(VadplabError):
        writer.write(0, memoryview(bytes(512)))


def test_a_ticket_for_reading_does_not_write(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(SIZE))
    with host(image) as announcement:
        reading = session(announcement, "nbd", write=False)
        with pytest.raises(OpenFailed):
            reading.open_writer(announcement["path"], SIZE, step="v7")
        reading.close()


def test_a_write_that_the_host_refuses(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(SIZE))
    with host(image) as announcement:
        reading = session(announcement, "nbd", write=False)
        source = reading.open_disk(announcement["path"], SIZE)
        request = reading.client.start_write(source._handle, 0, memoryview(bytes(200_192)))
        with pytest.raises(WriteFailed):
            request.wait()
        buffer = bytearray(512)
        source.read(0, memoryview(buffer))  # the connection still works
        source.close()
