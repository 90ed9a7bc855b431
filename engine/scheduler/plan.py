# SPDX-License-Identifier: MIT
"""`plan`: tasks × resources × load → assignments, or None when every suitable resource is busy and the job must wait.
`replace`: the same for tasks whose proxy was lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from engine.errors import MissingError
from engine.modes.names import preference, usable


class NoResource(MissingError):
    """No proxy or repository could ever serve a task of the job."""

    code = "scheduler.no-resource"
    symptom = "no suitable resource"
    advice = "Add a proxy or repository that supports the job's transport mode, and run `infra rescan`."


@dataclass(frozen=True, slots=True)
class Task:
    """One VM disk to be read in transport mode `mode` (`auto`: the best that a proxy can), or with `failover` in a lesser one."""

    id: str
    vm: str
    mode: str
    failover: bool = True


@dataclass(frozen=True, slots=True)
class Resource:
    """A proxy or repository: how many tasks it may run at the same time, and (proxies) the transport modes it can use."""

    name: str
    limit: int
    modes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who serves one task."""

    task: str
    proxy: str
    repository: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Assignments of a job's tasks, and its slots: how many of them may run at the same time on each resource.

    A job may have more tasks than slots; its tasks then take turns. Slots are at least 1 on each resource that is used.
    """

    assignments: tuple[Assignment, ...]
    slots: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replacement:
    """Another proxy for each task, by task id, and the slots that the job takes there in addition to those it holds."""

    proxies: Mapping[str, str]
    slots: Mapping[str, int] = field(default_factory=dict)


def plan(
    tasks: Sequence[Task],
    proxies: Sequence[Resource],
    repositories: Sequence[Resource],
    load: Mapping[str, int],
    affinity: Mapping[str, str] | None = None,
) -> Plan | None:
    """Assigns every task, or gives None when the job must wait for others to release slots.

    Each task gets a proxy that supports its mode. While there are free slots, proxies with the better mode come first (Direct
    SAN before HotAdd before Network, where the task may use several), then the one that is least loaded in proportion to its
    limit; tasks for which no slot is free are spread in proportion to the limits. All tasks of a VM get one repository (one
    restore point is one folder): the one that keeps its chain (`affinity`: VM → repository), for which the job waits, else the
    least loaded. Ties go to the first name.

    Args:
        load: slots that other jobs hold now, by resource.

    Raises:
        NoResource: no resource could serve a task even with nothing else running.
    """
    chosen: Counter[str] = Counter()
    repository_of: dict[str, str] = {}
    assignments = []
    for task in tasks:
        suitable = _suitable(task, proxies)
        if not any(r.limit > 0 for r in repositories):
            raise NoResource(f"task {task.id}: there is no repository")
        if task.vm not in repository_of:
            previous = [r for r in repositories if r.name == (affinity or {}).get(task.vm) and r.limit > 0]
            repository = _least(previous or repositories, load, chosen)
            if repository is None:
                return None
            repository_of[task.vm] = repository.name
        proxy = _best(task, suitable, load, chosen)
        if proxy is None:
            return None
        chosen[proxy.name] += 1
        chosen[repository_of[task.vm]] += 1
        assignments.append(Assignment(task.id, proxy.name, repository_of[task.vm]))
    limits = {r.name: r.limit for r in (*proxies, *repositories)}
    slots = {name: min(count, limits[name] - load.get(name, 0)) for name, count in chosen.items()}
    return Plan(tuple(assignments), slots)


def replace(
    tasks: Sequence[Task],
    proxies: Sequence[Resource],
    lost: Collection[str],
    load: Mapping[str, int],
    held: Mapping[str, int],
) -> Replacement | None:
    """Another proxy for tasks whose own was lost, or None when the job must wait.

    Proxies on which the job holds slots already (`held`) come first: its tasks take turns there, nobody has to wait.

    Args:
        lost: names of proxies that must not be used. load: slots that other jobs hold now.

    Raises:
        NoResource: no other proxy could serve a task.
    """
    chosen: Counter[str] = Counter()
    found: dict[str, str] = {}
    for task in tasks:
        suitable = [p for p in _suitable(task, proxies) if p.name not in lost]
        if not suitable:
            raise NoResource(f"task {task.id}: no other proxy supports transport mode {task.mode}")
        own = [p for p in suitable if held.get(p.name)]
        proxy = _best(task, own, {}, chosen) or _best(task, suitable, load, chosen)
        if proxy is None:
            return None
        chosen[proxy.name] += 1
        found[task.id] = proxy.name
    limits = {p.name: p.limit for p in proxies}
    slots = {n: min(count, limits[n] - load.get(n, 0)) for n, count in chosen.items() if not held.get(n)}
    return Replacement(found, slots)


def _suitable(task: Task, proxies: Sequence[Resource]) -> list[Resource]:
    found = [p for p in proxies if p.limit > 0 and usable(task.mode, p.modes, failover=task.failover)]
    if not found:
        raise NoResource(f"task {task.id}: no proxy supports transport mode {task.mode}")
    return found


def _best(
    task: Task, suitable: Sequence[Resource], load: Mapping[str, int], chosen: Mapping[str, int]
) -> Resource | None:
    pressure = _pressure(load, chosen)
    order = preference(task.mode, failover=task.failover)

    def key(proxy: Resource) -> tuple[bool, float, float, str]:
        rank = float(order.index(usable(task.mode, proxy.modes, failover=task.failover)[0]))
        crowded = load.get(proxy.name, 0) + chosen.get(proxy.name, 0) >= proxy.limit
        busy, name = pressure(proxy)
        return (crowded, busy, rank, name) if crowded else (crowded, rank, busy, name)

    return min((p for p in suitable if p.limit > load.get(p.name, 0)), key=key, default=None)


def _least(candidates: Sequence[Resource], load: Mapping[str, int], chosen: Mapping[str, int]) -> Resource | None:
    free = [r for r in candidates if r.limit > load.get(r.name, 0)]
    return min(free, key=_pressure(load, chosen), default=None)


def _pressure(load: Mapping[str, int], chosen: Mapping[str, int]) -> Callable[[Resource], tuple[float, str]]:
    return lambda r: ((load.get(r.name, 0) + chosen.get(r.name, 0)) / r.limit, r.name)
