# SPDX-License-Identifier: MIT
"""The scheduler: limits hold at any time, load is spread in proportion, VMs stay on one repository, nobody waits for ever."""

from __future__ import annotations

import heapq
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.modes.names import usable
from engine.scheduler import NoResource, Plan, Resource, Task, plan, replace

NBD = frozenset({"nbd"})


def proxy(name: str, limit: int, modes: frozenset[str] = NBD) -> Resource:
    return Resource(name, limit, modes)


def tasks(vms: dict[str, int], mode: str = "nbd") -> list[Task]:
    return [Task(f"{vm}:{i}", vm, mode) for vm, n in vms.items() for i in range(n)]


def test_least_loaded_in_proportion_to_the_limit() -> None:
    found = plan(tasks({"a": 6}), [proxy("p1", 2), proxy("p2", 4)], [Resource("r1", 9)], {})
    assert found is not None
    assert Counter(a.proxy for a in found.assignments) == {"p1": 2, "p2": 4}
    assert found.slots == {"p1": 2, "p2": 4, "r1": 6}
    found = plan(tasks({"a": 1}), [proxy("p1", 2), proxy("p2", 2)], [Resource("r1", 2)], {"p1": 1})
    assert found is not None and found.assignments[0].proxy == "p2"


def test_a_vm_stays_on_its_repository() -> None:
    repositories = [Resource("r1", 4), Resource("r2", 4)]
    found = plan(tasks({"a": 2, "b": 2}), [proxy("p", 9)], repositories, {})
    assert found is not None
    assert {(a.task[0], a.repository) for a in found.assignments} == {("a", "r1"), ("b", "r2")}
    found = plan(tasks({"a": 2}), [proxy("p", 9)], repositories, {"r2": 3}, {"a": "r2"})
    assert found is not None and {a.repository for a in found.assignments} == {"r2"}
    assert plan(tasks({"a": 2}), [proxy("p", 9)], repositories, {"r2": 4}, {"a": "r2"}) is None  # its chain is there
    found = plan(tasks({"a": 2}), [proxy("p", 9)], repositories, {"r2": 4}, {"a": "gone"})
    assert found is not None and {a.repository for a in found.assignments} == {"r1"}


def test_modes_waiting_and_what_can_never_work() -> None:
    both = [proxy("p1", 1), proxy("p2", 1, frozenset({"hotadd"}))]
    found = plan(tasks({"a": 1}, "hotadd"), both, [Resource("r", 1)], {})
    assert found is not None and found.assignments[0].proxy == "p2"
    assert plan(tasks({"a": 1}), both, [Resource("r", 1)], {"p1": 1}) is None
    assert plan(tasks({"a": 1}), both, [Resource("r", 1)], {"r": 1}) is None
    with pytest.raises(NoResource):
        plan([Task("a:0", "a", "san", failover=False)], both, [Resource("r", 1)], {})
    with pytest.raises(NoResource):
        plan(tasks({"a": 1}), both, [], {})
    assert plan([], both, [], {}) == Plan(())


jobs = st.lists(
    st.tuples(
        st.integers(0, 50),  # arrives
        st.dictionaries(st.sampled_from("abcd"), st.integers(1, 4), min_size=1, max_size=3),  # VMs and their disks
        st.integers(1, 9),  # a task takes
    ),
    min_size=1,
    max_size=12,
)
limits = st.lists(st.integers(1, 5), min_size=1, max_size=3)


@given(jobs, limits, limits)
def test_simulated_site(arrivals: list[tuple[int, dict[str, int], int]], p: list[int], r: list[int]) -> None:
    """A site on a simulated clock: jobs arrive, wait in line, hold slots while their tasks take turns, and leave."""
    proxies = [proxy(f"p{i}", n) for i, n in enumerate(p)]
    repositories = [Resource(f"r{i}", n) for i, n in enumerate(r)]
    limit = {x.name: x.limit for x in (*proxies, *repositories)}
    clock = 0
    waiting = sorted(enumerate(arrivals), key=lambda a: a[1][0])
    running: list[tuple[int, int, Plan]] = []
    finished = 0
    while waiting or running:
        load: Counter[str] = Counter()
        for _, _, held in running:
            load.update(held.slots)
        assert all(load[name] <= limit[name] for name in load)
        if waiting and waiting[0][1][0] <= clock:
            number, (_, vms, takes) = waiting[0]
            found = plan(tasks(vms), proxies, repositories, load)
            if found is not None:
                waiting.pop(0)
                check(found, vms, limit, load)
                turns = max(-(-n // found.slots[name]) for name, n in used(found).items())
                heapq.heappush(running, (clock + turns * takes, number, found))
                continue
            assert running, "nothing runs, and still a job waits"
        times = [running[0][0]] if running else []
        times += [waiting[0][1][0]] if waiting and waiting[0][1][0] > clock else []
        clock = min(times)
        while running and running[0][0] <= clock:
            heapq.heappop(running)
            finished += 1
    assert finished == len(arrivals)


def used(found: Plan) -> Counter[str]:
    return Counter(name for a in found.assignments for name in (a.proxy, a.repository))


def check(found: Plan, vms: dict[str, int], limit: dict[str, int], load: Counter[str]) -> None:
    assert [a.task for a in found.assignments] == [t.id for t in tasks(vms)]
    per_vm = {vm: {a.repository for a in found.assignments if a.task.startswith(f"{vm}:")} for vm in vms}
    assert all(len(names) == 1 for names in per_vm.values())
    for name, count in used(found).items():
        assert 1 <= found.slots[name] <= min(count, limit[name] - load[name])
    assert set(found.slots) == set(used(found))


ALL = frozenset({"san", "hotadd", "nbdssl", "nbd"})


@pytest.mark.parametrize(
    ("mode", "failover", "able", "tried"),
    [
        ("auto", True, ALL, ("san", "hotadd", "nbdssl")),
        ("auto", True, {"hotadd", "nbd"}, ("hotadd", "nbd")),
        ("auto", False, {"hotadd", "nbd"}, ("hotadd",)),
        ("san", True, ALL, ("san", "nbdssl")),
        ("san", True, {"nbd"}, ("nbd",)),
        ("san", False, ALL, ("san",)),
        ("san", False, {"nbd"}, ()),
        ("hotadd", True, {"hotadd"}, ("hotadd", "nbdssl")),
        ("auto", True, {"hotadd"}, ("hotadd", "nbdssl")),
        ("hotadd", False, {"hotadd"}, ("hotadd",)),
        ("nbd", True, ALL, ("nbd",)),
        ("nbd", True, {"nbdssl"}, ()),
    ],
)
def test_modes_to_try_on_a_proxy(mode: str, failover: bool, able: frozenset[str], tried: tuple[str, ...]) -> None:
    assert usable(mode, able, failover=failover) == tried


def test_better_modes_come_first_while_slots_are_free() -> None:
    site = [
        proxy("a-net", 4, frozenset({"nbdssl"})),
        proxy("b-hot", 1, frozenset({"hotadd", "nbdssl"})),
        proxy("c-san", 2, frozenset({"san", "nbdssl"})),
    ]
    found = plan(tasks({"v": 5}, "auto"), site, [Resource("r", 9)], {})
    assert found is not None
    assert [a.proxy for a in found.assignments] == ["c-san", "c-san", "b-hot", "a-net", "a-net"]
    found = plan(tasks({"v": 12}, "auto"), site, [Resource("r", 9)], {"c-san": 2})
    assert found is not None and "c-san" not in found.slots  # others hold it all
    assert found.slots["a-net"] == 4 and found.slots["b-hot"] == 1


def test_tasks_of_a_lost_proxy_go_to_others_and_first_to_those_that_the_job_holds() -> None:
    site = [proxy("p1", 2), proxy("p2", 2), proxy("p3", 2)]
    found = replace(tasks({"a": 2}), site, {"p1"}, {"p2": 1}, {"p1": 2, "p3": 1})
    assert found is not None and set(found.proxies.values()) == {"p3"} and found.slots == {}
    found = replace(tasks({"a": 2}), site, {"p1"}, {"p2": 1}, {"p1": 2})
    assert found is not None and set(found.proxies.values()) <= {"p2", "p3"} and found.slots["p3"] >= 1
    assert all(n <= 2 - {"p2": 1}.get(p, 0) for p, n in found.slots.items())
    assert replace(tasks({"a": 1}), site, {"p1"}, {"p2": 2, "p3": 2}, {"p1": 2}) is None
    with pytest.raises(NoResource):
        replace(tasks({"a": 1}), site, {"p1", "p2", "p3"}, {}, {})
