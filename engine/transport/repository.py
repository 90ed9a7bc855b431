# SPDX-License-Identifier: MIT
"""The repository's methods of the Transport Service: restore points are made, listed, verified, pruned, merged, imported.

method             parameters                                        result
point.begin        job, vm, point, kind?, parent?,                   {folder}; `kind` full (default) or incremental on `parent`;
                   data?, capacity?                                  `data` bytes to send of disks of `capacity`: space is reserved
point.commit       job, vm, point, manifest                          {folder}
point.abort        job, vm, point                                    {}
points.list        -                                                 {points: [summary]}
points.find        point, vm?                                        summary, with the text of its `vmx`
points.newest      job, vm, capacity?                                {point: summary or null, problem, need, need_incremental, free}:
                                                                  what a new point can stand on, else why not; bytes that a full,
                                                                  and an incremental, of disks of `capacity` bytes need at least
points.verify      vm?, point?, deep?                                {intact, vms: [{intact, points: [health]}]}
points.prune       job, vm, count?, days?                            {merges, removals}: what was done
points.synthesize  job, vm, point                                    {folder}
points.delete      job, vm, point                                    {}
points.import      folder (on this machine)                          {points, refused}

All of it blocks, so it runs in threads; meanwhile the caller gets signs of life as progress `{alive: seconds}`.
Sources: `engine.store.points`, `health`, `retention`, `merge`, `importing`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.processes import in_thread
from engine.rpc.server import BadParams, Call, Peer, UnknownMethod
from engine.store import health, importing, merge, retention
from engine.store.clusters import CLUSTER_BITS
from engine.store.points import Points

STORE_DEADLINE = 600.0
ALIVE = 5.0
"""Seconds between signs of life."""
LONG_DEADLINE = 6 * 3600.0
"""Verifying and merging read whole chains."""


class Repository:
    """Answers the calls above for the points of one folder."""

    def __init__(self, points: Points) -> None:
        self.points = points
        self._methods: dict[str, Callable[[Call], dict[str, Any]]] = {
            "point.begin": self._begin,
            "point.commit": self._commit,
            "point.abort": self._abort,
            "points.list": lambda call: {"points": [point.summary() for point in self.points.list()]},
            "points.find": self._find,
            "points.newest": self._newest,
            "points.verify": self._verify,
            "points.prune": self._prune,
            "points.synthesize": self._synthesize,
            "points.delete": self._delete,
            "points.import": self._import,
        }

    def knows(self, method: str) -> bool:
        """Whether this is a repository's method."""
        return method in self._methods

    async def handle(self, call: Call) -> dict[str, Any]:
        """Answers one call."""
        method = self._methods.get(call.method)
        if method is None:
            raise UnknownMethod(f"repositories have no method {call.method}")
        long = call.method in ("points.verify", "points.prune", "points.synthesize", "points.delete", "points.import")
        deadline = LONG_DEADLINE if long else STORE_DEADLINE
        work = asyncio.ensure_future(in_thread(lambda: method(call), deadline=deadline, what=call.method))
        seconds = 0.0
        try:
            while not (await asyncio.wait([work], timeout=ALIVE))[0]:
                seconds += ALIVE
                await call.progress({"alive": seconds})
        finally:
            work.cancel()  # harmless when it has ended; a thread that is under way ends by itself
        return work.result()

    def left(self, peer: Peer) -> None:
        """What this peer has begun and not committed is removed. Blocking."""
        for job, vm, point in list(peer.data.get("points", ())):
            self.points.abort(job, vm, point)

    def _begin(self, call: Call) -> dict[str, Any]:
        job, vm, point = _names(call)
        kind = call.param("kind", default="full")
        data, capacity = call.param("data", int, default=0), call.param("capacity", int, default=0)
        if data < 0 or capacity < 0:
            raise BadParams("point.begin: data and capacity are numbers of bytes")
        estimate = self.points.estimate(job, vm, data=data, capacity=capacity) if data else 0
        _begun(call).add((job, vm, point))  # before: the peer may leave while the point is being begun
        folder = self.points.begin(
            job,
            vm,
            point,
            kind=kind,
            parent=call.param("parent", default=None),
            estimate=estimate,
        )
        return {"folder": str(folder)}

    def _commit(self, call: Call) -> dict[str, Any]:
        names = _names(call)
        folder = self.points.commit(*names, call.param("manifest", dict))
        _begun(call).discard(names)
        return {"folder": str(folder)}

    def _abort(self, call: Call) -> dict[str, Any]:
        names = _names(call)
        self.points.abort(*names)
        _begun(call).discard(names)
        return {}

    def _find(self, call: Call) -> dict[str, Any]:
        found = self.points.find(call.param("point"), vm=call.param("vm", default=None))
        return {**found.summary(), "vmx": found.manifest.vmx if found.manifest is not None else None}

    def _newest(self, call: Call) -> dict[str, Any]:
        job, vm = call.param("job"), call.param("vm")
        capacity = call.param("capacity", int, default=0)
        history = self.points.of_vm(job, vm)
        newest = history[-1] if history else None
        manifest = newest.manifest if newest is not None else None
        kept = sum((disk.allocated or 0) << CLUSTER_BITS for disk in manifest.disks) if manifest is not None else 0
        return {
            "point": newest.summary() if newest is not None and manifest is not None else None,
            "problem": newest.error if newest is not None else None,
            "need": self.points.estimate(job, vm, data=kept, capacity=capacity),
            "need_incremental": self.points.estimate(job, vm, data=0, capacity=capacity),
            "free": self.points.free_bytes(),
        }

    def _verify(self, call: Call) -> dict[str, Any]:
        deep, point, vm = (
            call.param("deep", bool, default=False),
            call.param("point", default=None),
            call.param("vm", default=None),
        )
        if point is not None:
            folder = self.points.find(point, vm=vm).folder
            found = [health.verify(folder.parent, only=folder.name, deep=deep)]
        else:
            found = health.verify_repository(self.points.repository, vm=vm, deep=deep)
        vms = [{"intact": one.intact, "points": [p.to_dict() for p in one.points]} for one in found]
        return {"intact": all(one.intact for one in found), "vms": vms}

    def _prune(self, call: Call) -> dict[str, Any]:
        policy = retention.Policy(call.param("count", int, default=None), call.param("days", int, default=None))
        job, vm = call.param("job"), call.param("vm")
        return retention.apply(self.points, job, vm, policy, datetime.now(UTC)).to_dict()

    def _synthesize(self, call: Call) -> dict[str, Any]:
        return {"folder": str(merge.synthetic_full(self.points, *_names(call)))}

    def _delete(self, call: Call) -> dict[str, Any]:
        merge.delete(self.points, *_names(call))
        return {}

    def _import(self, call: Call) -> dict[str, Any]:
        return importing.import_points(self.points, Path(call.param("folder"))).to_dict()


def _names(call: Call) -> tuple[str, str, str]:
    return call.param("job"), call.param("vm"), call.param("point")


def _begun(call: Call) -> set[tuple[str, str, str]]:
    begun: set[tuple[str, str, str]] = call.peer.data.setdefault("points", set())
    return begun
