# SPDX-License-Identifier: MIT
"""Runs of jobs: queued per job, each in a Backup Manager process of its own, watched until it ends.

A second run of a job waits for the first. When a manager dies, what it left is put right before the run counts as ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.errors import ConnectError, InputError, VadplabError
from engine.events import EventLog
from engine.model.database import Database
from engine.model.jobs import JobDisabled
from engine.processes import Child, in_thread
from engine.report import JobStopped, Reporter, document, what_is_left
from engine.scheduler import Resource, Task
from engine.service.aftermath import Aftermath
from engine.service.broker import Broker
from engine.service.runs import RunState

MODULE = "engine.manager"
DATABASE_DEADLINE = 30.0
STOP_GRACE = 120.0
RECOVERY_DEADLINE = 180.0


class ManagerDied(VadplabError):
    """The Backup Manager of a run ended without a result."""

    code = "manager.died"
    symptom = "process ended"
    advice = "Run the job again. See the backup server's log."


class NotRunning(InputError):
    """There is no run of that job."""

    code = "job.not-running"
    advice = "Nothing to do."


class JobRunning(InputError):
    """The job is running."""

    code = "job.running"
    advice = "Stop it with `job stop`, or wait for its end."


class Jobs:
    """Starts, watches and stops runs of jobs. `manager_module` is the process to run (tests put their own)."""

    def __init__(
        self, config: EngineConfig, path: Path, database: Database, broker: Broker, *, manager_module: str = MODULE
    ) -> None:
        self.port = config.port
        self.recovered = asyncio.Event()
        self._config = config
        self._path = path
        self._database = database
        self._broker = broker
        self._module = manager_module
        self._runs: dict[str, RunState] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._children: dict[str, Child] = {}
        self._work: set[asyncio.Task[None]] = set()

    def find(self, session: str) -> RunState:
        """A run that has not ended. Raises InputError."""
        if session not in self._runs:
            raise InputError(f"no run with the session {session}")
        return self._runs[session]

    def busy(self, name: str) -> bool:
        """Whether a run of that job goes on or waits."""
        return any(s.subject == name for s in self._runs.values())

    def refuse_while_running(self, name: str) -> None:
        """Raises JobRunning."""
        if self.busy(name):
            raise JobRunning(f"job {name} is running")

    async def launch(self, name: str, session: str, options: dict[str, Any], *, trigger: str, **data: Any) -> RunState:
        """Step 1: puts a run of job `name` into the queue, whoever asked for it (`trigger`: console, rest, schedule).

        Raises:
            JobUnknown, JobDisabled, InputError (the session's id is in use).
        """
        events = self._config.event_log("service", session=session)
        try:
            state = await self._begin(name, session, options)
            with Reporter(events, state.tell).step("1", job=name, trigger=trigger, **data):
                pass  # the call, or the clock, is the start
        finally:
            events.close()
        return state

    async def _begin(self, name: str, session: str, options: dict[str, Any]) -> RunState:
        def record(db: Database) -> None:
            if not db.job_book.show(name)["enabled"]:
                raise JobDisabled(f"job {name} is switched off")
            db.begin_session(session, "job", name, "queued")

        state = RunState(session, "job", name, options)
        try:
            await self.database(record)
        except ConnectError:
            # The database's server is not reached. Step 3, which reads the job from it, is where the run fails and says so.
            state.recorded = False
        self._runs[session] = state
        task = asyncio.create_task(self._perform(state))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return state

    async def stop(self, name: str) -> list[str]:
        """Stops every run of a job: thaw, commit, end. Gives their sessions. Raises NotRunning, JobUnknown."""
        await self.database(lambda db: db.job(name))
        states = [s for s in self._runs.values() if s.subject == name]
        if not states:
            raise NotRunning(f"job {name} is not running")
        await asyncio.gather(*(self._stop(s) for s in states))
        return [s.session for s in states]

    async def close(self) -> None:
        """Stops every run and waits for its end."""
        await asyncio.gather(*(self._stop(s) for s in list(self._runs.values())))
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    async def inputs(self, session: str) -> dict[str, Any]:
        """Step 3: what the manager of `session` needs, with the options of this run. With a database server this is a flow."""
        state = self.find(session)
        events = self._config.event_log("service", session=session)

        def read(db: Database) -> dict[str, Any]:
            with db.for_step("3", self._config.dialer(events)) as database:
                return database.job_inputs(state.subject)

        try:
            found: dict[str, Any] = await self.database(read)
        finally:
            events.close()
        found["job"] |= {k: v for k, v in state.options.items() if v is not None}
        return found

    async def acquire(self, session: str, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        """Assignments and slots for the tasks of a run; waits while resources are busy."""
        state = self.find(session)
        servers = await self.database(lambda db: db.servers())
        affinity = await self.database(lambda db: db.placements(state.subject))
        found = await self._broker.acquire(
            session, _tasks(tasks), _resources(servers, "proxy"), _resources(servers, "repository"), affinity
        )
        return {
            "assignments": [{"task": a.task, "proxy": a.proxy, "repository": a.repository} for a in found.assignments],
            "slots": dict(found.slots),
        }

    async def reassign(self, session: str, tasks: list[dict[str, Any]], lost: list[str]) -> dict[str, Any]:
        """Other proxies for tasks of a run whose own are lost, and the slots that are new; waits while they are busy."""
        self.find(session)
        servers = await self.database(lambda db: db.servers())
        found = await self._broker.reassign(session, _tasks(tasks), _resources(servers, "proxy"), lost)
        return {
            "assignments": [{"task": task, "proxy": proxy} for task, proxy in found.proxies.items()],
            "slots": dict(found.slots),
        }

    async def pending(self, session: str, pending: dict[str, Any]) -> None:
        """Stores what must be put right should the manager die."""
        self.find(session).pending = pending
        await self.database(lambda db: db.set_pending(session, pending))

    async def dead(self, sessions: list[str]) -> list[str]:
        """Which of these were runs of this service and go on no more. What is not known may be another backup server's."""
        known = await self.database(lambda db: [s for s in sessions if db.session(str(s)) is not None])
        return [s for s in known if s not in self._runs]

    async def learned(self, session: str, fields: dict[str, Any]) -> None:
        """Facts that a manager found: a guest's host key, where a VM's restore point went."""
        state = self.find(session)
        vm = str(fields["vm"])
        if key := fields.get("host_key"):
            await self.database(lambda db: db.pin_host_key(vm, str(key)))
        if repository := fields.get("repository"):
            await self.database(lambda db: db.place(state.subject, vm, str(repository)))

    async def recover_unfinished(self) -> None:
        """At the service's start: puts right what earlier runs left, then lets new ones begin."""
        try:
            for session in await self.database(lambda db: db.unfinished()):
                left = session["pending"]
                if left:
                    left = await self._recover(session["id"], session["subject"], left)
                if session["state"] != "ended":
                    died = ManagerDied(f"the Backup Service ended during the run of {session['subject']}")
                    died.next = f"{ManagerDied.advice} {what_is_left(left)}"
                    result = document(session["id"], session["subject"], session["created"], died)
                    await self.database(lambda db, s=session, r=result: db.end_session(s["id"], "failed", r))
        except Exception:
            traceback.print_exc(file=sys.stderr)
        finally:
            self.recovered.set()

    async def database(self, work: Any) -> Any:
        """Runs `work(database)` in a thread."""
        return await in_thread(lambda: work(self._database), deadline=DATABASE_DEADLINE, what="database")

    async def _perform(self, state: RunState) -> None:
        started = time.time_ns()
        error: VadplabError | None = None
        result: dict[str, Any] | None = None
        try:
            async with self._turn(state):
                if not state.stopping:
                    if state.recorded:
                        await self.database(lambda db: db.set_state(state.session, "running"))
                    await self._manage(state)
                    result = state.document
        except VadplabError as exc:
            error = exc
        except Exception as exc:
            traceback.print_exc(file=sys.stderr)
            error = VadplabError(f"{type(exc).__name__} in the Backup Service")
        finally:
            self._broker.release(state.session)
            if result is None:
                if error is None and state.stopping:
                    error = JobStopped(f"job {state.subject} was stopped")
                error = error or ManagerDied(f"the Backup Manager of {state.subject} ended without a result")
                if state.pending:
                    state.pending = await self._recover(state.session, state.subject, state.pending)
                if isinstance(error, ManagerDied | JobStopped):
                    error.next = f"{error.advice} {what_is_left(state.pending)}"
                result = document(state.session, state.subject, started, error)
                result["left"] = state.pending
            final = result
            if state.recorded:
                with contextlib.suppress(VadplabError):
                    await self.database(lambda db: db.end_session(state.session, final["result"], final))
            self._runs.pop(state.session, None)
            state.end(final)
            if not state.recorded:
                with contextlib.suppress(VadplabError):
                    await self.database(lambda db: _record_late(db, state, final))

    @contextlib.asynccontextmanager
    async def _turn(self, state: RunState) -> Any:
        lock = self._turns[state.subject]
        if lock.locked():
            state.tell({"kind": "note", "step": "1", "text": "queued: another run of this job goes on"})
        async with lock:
            await asyncio.wait_for(self.recovered.wait(), RECOVERY_DEADLINE)
            yield

    async def _manage(self, state: RunState) -> None:
        arguments = ["--config", str(self._path), "--session", state.session, "--service-port", str(self.port)]
        child = await Child.start(self._module, arguments)
        self._children[state.session] = child
        try:
            if state.stopping:
                await child.stop(STOP_GRACE)
            await child.wait()
        finally:
            self._children.pop(state.session, None)
            await child.stop()

    async def _stop(self, state: RunState) -> None:
        state.stopping = True
        state.tell({"kind": "note", "step": "1", "text": "stopping"})
        if child := self._children.get(state.session):
            await child.stop(STOP_GRACE)
        elif self._turns[state.subject].locked():
            pass  # it waits for its turn, sees `stopping`, and ends
        await asyncio.wait_for(state.ended.wait(), STOP_GRACE + RECOVERY_DEADLINE)

    async def _recover(self, session: str, subject: str, pending: dict[str, Any]) -> dict[str, Any]:
        job = None
        with contextlib.suppress(VadplabError):
            job = await self.database(lambda db: db.job(subject))
        vcenters = await self.database(lambda db: db.vcenters())
        guests = await self.database(lambda db: db.guests(list(pending)))
        events: EventLog = self._config.event_log("service", session=session)
        try:
            left = await Aftermath(self._config, events, session).run(
                pending, job=job, vcenters=vcenters, guests=guests
            )
        finally:
            events.close()
        await self.database(lambda db: db.set_pending(session, left))
        return left


def _tasks(tasks: list[dict[str, Any]]) -> list[Task]:
    return [Task(t["id"], t["vm"], t["mode"], bool(t.get("failover", True))) for t in tasks]


def _resources(servers: list[dict[str, Any]], role: str) -> list[Resource]:
    return [Resource(s["name"], s["max_tasks"], frozenset(s["modes"])) for s in servers if role in s["roles"]]


def _record_late(database: Database, state: RunState, result: dict[str, Any]) -> None:
    """The record of a run that began without the database."""
    database.begin_session(state.session, state.kind, state.subject)
    database.end_session(state.session, result["result"], result)
