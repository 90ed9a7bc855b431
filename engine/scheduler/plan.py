# SPDX-License-Identifier: MIT
"""`plan`: tasks × resources × load → assignments, or None when every suitable resource is busy and the job must wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.errors import MissingError


class NoResource(MissingError):
    """No proxy or repository could ever serve a task of the job."""

    code = "scheduler.no-resource"
    symptom = "no suitable resource"
    advice = "Add a proxy or repository that supports the job's transport mode, and run `infra rescan`."


@dataclass(frozen=True, slots=True)
class Task:
    """One VM disk to be read in transport mode `mode`."""

    id: str
    vm: str
    mode: str


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


def plan(
    tasks: Sequence[Task],
    proxies: Sequence[Resource],
    repositories: Sequence[Resource],
    load: Mapping[str, int],
    affinity: Mapping[str, str] | None = None,
) -> Plan | None:
    """Assigns every task, or gives None when the job must wait for others to release slots.

    Each task gets the proxy that supports its mode and is least loaded in proportion to its limit; all tasks of a VM get one
    repository (one restore point is one folder): the VM's previous one (`affinity`: VM → repository) when it has a free
    slot, else the least loaded. Ties go to the first name.

    Args:
        load: slots that other jobs hold now, by resource.

    Raises:
        NoResource: no resource could serve a task even with nothing else running.
    """
    chosen: Counter[str] = Counter()

    def least(candidates: Sequence[Resource]) -> Resource | None:
        free = [r for r in candidates if r.limit > load.get(r.name, 0)]
        return min(free, key=_pressure(load, chosen), default=None)

    repository_of: dict[str, str] = {}
    assignments = []
    for task in tasks:
        suitable = [p for p in proxies if task.mode in p.modes and p.limit > 0]
        if not suitable:
            raise NoResource(f"task {task.id}: no proxy supports transport mode {task.mode}")
        if not any(r.limit > 0 for r in repositories):
            raise NoResource(f"task {task.id}: there is no repository")
        proxy = least(suitable)
        if task.vm not in repository_of:
            previous = [r for r in repositories if r.name == (affinity or {}).get(task.vm)]
            repository = least(previous) or least(repositories)
            if repository is None:
                return None
            repository_of[task.vm] = repository.name
        if proxy is None:
            return None
        chosen[proxy.name] += 1
        chosen[repository_of[task.vm]] += 1
        assignments.append(Assignment(task.id, proxy.name, repository_of[task.vm]))
    limits = {r.name: r.limit for r in (*proxies, *repositories)}
    slots = {name: min(count, limits[name] - load.get(name, 0)) for name, count in chosen.items()}
    return Plan(tuple(assignments), slots)


def _pressure(load: Mapping[str, int], chosen: Mapping[str, int]) -> Callable[[Resource], tuple[float, str]]:
    return lambda r: ((load.get(r.name, 0) + chosen.get(r.name, 0)) / r.limit, r.name)
