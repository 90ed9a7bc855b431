# SPDX-License-Identifier: MIT
"""The gate: retired grains are released only when nobody can still be reading them; closing waits and holds back."""

from __future__ import annotations

import threading

import pytest

from fakes.storage import gate as gate_module
from fakes.storage.gate import Gate


def made() -> tuple[Gate, list[int]]:
    released: list[int] = []
    return Gate(released.extend), released


def test_retired_grains_wait_for_requests_that_began_before() -> None:
    gate, released = made()
    reader, writer = gate.enter(), gate.enter()
    gate.retire([7])
    gate.leave(writer)
    later = gate.enter()
    gate.leave(later)
    assert released == []
    gate.leave(reader)
    assert released == [7]


def test_retired_grains_are_released_though_requests_always_overlap() -> None:
    gate, released = made()
    current = gate.enter()
    for number in range(10):
        following = gate.enter()
        gate.retire([number])
        gate.leave(current)
        current = following
    assert released == list(range(len(released))) and len(released) >= 8
    gate.leave(current)
    assert released == list(range(10))


def test_retired_by_one_of_many_in_the_second_epoch() -> None:
    gate, released = made()
    first = gate.enter()
    second = gate.enter()
    gate.retire([1])
    gate.leave(second)  # the epoch turns; `first` is of the old one
    third, fourth = gate.enter(), gate.enter()
    gate.retire([2])
    gate.leave(third)
    assert released == []
    gate.leave(first)
    assert released == [1]
    gate.leave(fourth)
    assert sorted(released) == [1, 2]


def test_closing_waits_for_requests_and_holds_back_new_ones() -> None:
    gate, released = made()
    token = gate.enter()
    gate.retire([3])
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def close() -> None:
        with gate.closed():
            order.append("closed")
            inside.set()
            go_on.wait(10)
            order.append("opened")

    def request() -> None:
        mine = gate.enter()
        order.append("entered")
        gate.leave(mine)

    closer = threading.Thread(target=close)
    closer.start()
    assert not inside.wait(0.05)
    gate.leave(token)
    assert inside.wait(10)
    late = threading.Thread(target=request)
    late.start()
    late.join(0.05)
    assert late.is_alive()
    go_on.set()
    closer.join(10)
    late.join(10)
    assert order == ["closed", "opened", "entered"] and released == [3]


def test_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_PATIENCE", 0.02)
    gate, _ = made()
    token = gate.enter()
    with pytest.raises(TimeoutError, match="did not end"):
        with gate.closed():
            raise AssertionError("a request is under way")
    gate.leave(gate.enter())
    gate.leave(token)
    with gate.closed():
        with pytest.raises(OSError, match="frozen too long"):
            gate.enter()
        with pytest.raises(TimeoutError, match="another change"):
            with gate.closed():
                raise AssertionError("closed twice")
