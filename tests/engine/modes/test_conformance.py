# SPDX-License-Identifier: MIT
"""Every source against the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.dialer import Dialer
from engine.events import EventLog
from engine.modes.device import Device, DeviceSource
from engine.modes.network import NetworkSession
from engine.modes.nfc.aio import Packing
from engine.modes.source import Source
from tests.engine.modes.conformance import CHECKS, SourceSuite, Subject
from tests.engine.modes.esxi import host, sample, ticket
from tests.engine.modes.memory_source import MemorySource
from tests.engine.modes.memory_vcenter import PATH, MemoryVCenter
from tests.engine.modes.san_array import array, lun_of

SIZE = (3 << 20) + 512 * 5
WHERE: dict[str, Any] = {"step": "20b", "host": "proxy-2", "target": None, "port": None}


KINDS = ["memory", "memory with extents", "hotadd device", "hotadd", "san", "nbd", "nbdssl", "nbd packed"]


@pytest.fixture(scope="module", params=KINDS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    content = sample(SIZE)
    if request.param.startswith("memory"):
        yield Subject(lambda: MemorySource(content, extents_known="extents" in request.param), content)
        return
    if request.param == "hotadd device":
        path: Path = tmp_path_factory.mktemp("device") / "disk"
        path.write_bytes(content)
        yield Subject(lambda: DeviceSource(Device(path, write=False, where=WHERE), SIZE), content)
        return
    if request.param == "hotadd":
        vcenter = MemoryVCenter(tmp_path_factory.mktemp("hotadd"), content, path=PATH)
        yield Subject(lambda: vcenter.open(capacity=SIZE), content)
        return
    if request.param == "san":
        folder = tmp_path_factory.mktemp("san")
        with array(folder, *lun_of(content)) as served:
            yield Subject(lambda: served.open(), content)
        return
    image: Path = tmp_path_factory.mktemp("esxi") / "disk.raw"
    image.write_bytes(content)
    with host(image) as announcement:

        def open_disk() -> Source:
            dialer = Dialer(EventLog(None, host="proxy-1", process="test"))
            kind, _, packed = request.param.partition(" ")
            session = NetworkSession.connect(dialer, ticket(announcement), kind)
            packing = Packing.ZLIB if packed else Packing.NONE
            return session.open_disk(announcement["path"], SIZE, packing=packing)

        yield Subject(open_disk, content)


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(subject: Subject, check: str) -> None:
    getattr(SourceSuite(), check)(subject)


class _Wrong(MemorySource):
    """Returns a shifted disk: the suite must notice."""

    def start(self, offset: int, view: memoryview):  # type: ignore[no-untyped-def]
        return super().start(
            (offset + 512) % (self.capacity - len(view) + 512) if len(view) < self.capacity else 0, view
        )


def test_the_suite_can_fail() -> None:
    content = sample(SIZE)
    failed = []
    for check in CHECKS:
        try:
            getattr(SourceSuite(), check)(Subject(lambda: _Wrong(content), content))
        except (AssertionError, ValueError, pytest.fail.Exception):
            failed.append(check)
    assert "check_whole_disk_in_pieces" in failed
    assert "check_threads_share_a_source" in failed
