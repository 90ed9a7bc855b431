# SPDX-License-Identifier: MIT
"""Every source against the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.dialer import Dialer
from engine.events import EventLog
from engine.modes.network import NetworkSession
from engine.modes.source import Source
from tests.engine.modes.conformance import CHECKS, SourceSuite, Subject
from tests.engine.modes.esxi import host, sample, ticket
from tests.engine.modes.memory_source import MemorySource

SIZE = (3 << 20) + 512 * 5


@pytest.fixture(scope="module", params=["memory", "memory with extents", "nbd", "nbdssl"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    content = sample(SIZE)
    if request.param.startswith("memory"):
        yield Subject(lambda: MemorySource(content, extents_known="extents" in request.param), content)
        return
    image: Path = tmp_path_factory.mktemp("esxi") / "disk.raw"
    image.write_bytes(content)
    with host(image) as announcement:

        def open_disk() -> Source:
            dialer = Dialer(EventLog(None, host="proxy-1", process="test"))
            session = NetworkSession.connect(dialer, ticket(announcement), request.param)
            return session.open_disk(announcement["path"], SIZE)

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
