# SPDX-License-Identifier: MIT
"""`infra rescan`: a run of its own, outside jobs. i1 the infrastructure file, i2 each vCenter, i3 each Transport Service.

Everything that can be read is stored; the result is failed when anything could not.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from engine.config import EngineConfig
from engine.errors import VadplabError
from engine.model import infrastructure
from engine.model.database import Database
from engine.processes import in_thread
from engine.report import Reporter
from engine.servers import connect
from engine.vsphere import VmInfo
from engine.vsphere.link import login

SCHEMA = "vadplab.rescan-result/1"
DEADLINE = 120.0


class RoleMissing(VadplabError):
    """A server is configured as a repository but keeps no restore points."""

    code = "infra.role-missing"
    symptom = "not a repository"
    advice = "Give its Transport Service a `repository` folder in its configuration."


class Rescan:
    """One rescan."""

    def __init__(self, config: EngineConfig, database: Database, reporter: Reporter, session: str) -> None:
        self._config = config
        self._database = database
        self._report = reporter
        self._session = session
        self._errors: list[VadplabError] = []

    async def run(self) -> dict[str, Any]:
        """Gives the result document (`vadplab.rescan-result/1`); never raises an error of the catalogue."""
        started = time.time_ns()
        vcenters: list[dict[str, Any]] = []
        servers: list[dict[str, Any]] = []
        try:
            await self._i1_read_file()
            for vcenter in await self._call(self._database.vcenters):
                vcenters.append(await self._tried(self._i2_read_inventory(vcenter), vcenter["name"]))
            for server in await self._call(self._database.servers):
                servers.append(await self._tried(self._i3_ask_transport(server), server["name"]))
        except VadplabError as exc:
            self._errors.append(exc)
        first = self._errors[0].to_dict() if self._errors else None
        return {
            "schema": SCHEMA,
            "run": self._session,
            "kind": "rescan",
            "result": "failed" if first else "success",
            "error": first,
            "errors": [e.to_dict() for e in self._errors],
            "vcenters": vcenters,
            "servers": servers,
            "started": datetime.fromtimestamp(started / 1e9, UTC).isoformat(),
            "ended": datetime.now(UTC).isoformat(),
        }

    async def _i1_read_file(self) -> None:
        assert self._config.service is not None
        path = self._config.service.infrastructure
        with self._report.step("i1"):
            found = await self._call(lambda: infrastructure.load(path))
            await self._call(lambda: self._database.store_infrastructure(found))

    async def _i2_read_inventory(self, vcenter: dict[str, Any]) -> dict[str, Any]:
        def read() -> tuple[str | None, list[VmInfo]]:
            session = login(self._config.dialer(self._report.events), vcenter, step="i2", keylog=self._config.keylog)
            try:
                return session.seen_thumbprint, session.vms(step="i2")
            finally:
                session.logout()

        with self._report.step("i2", task=vcenter["name"]) as result:
            thumbprint, vms = await self._call(read)
            await self._call(lambda: self._database.store_inventory(vcenter["name"], thumbprint, vms))
            result["vms"] = len(vms)
        return {"vms": len(vms), "disks": sum(len(vm.disks) for vm in vms)}

    async def _i3_ask_transport(self, server: dict[str, Any]) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        try:
            with self._report.step("i3", task=server["name"]):
                client = await connect(self._config, self._report.events, server, step="i3")
                try:
                    facts = await client.call("hello", step="i3", added=await self._added_as_repository(server))
                finally:
                    await client.close()
                if "repository" in server["roles"] and "repository" not in facts["roles"]:
                    raise RoleMissing(f"{server['name']} keeps no restore points", target=server["name"])
        except VadplabError as exc:
            problem = exc.message
            await self._call(lambda: self._database.store_facts(server["name"], facts, problem))
            raise
        await self._call(lambda: self._database.store_facts(server["name"], facts, None))
        return {"version": facts["version"], "free_bytes": facts.get("free_bytes"), "max_tasks": server["max_tasks"]}

    async def _added_as_repository(self, server: dict[str, Any]) -> bool:
        """Whether a server is to keep restore points and has never been known to: only then is a missing folder made."""
        if "repository" not in server["roles"] or "repository" in server["facts"].get("roles", []):
            return False
        return not await self._call(lambda: self._database.keeps_points(server["name"]))

    async def _tried(self, work: Any, name: str) -> dict[str, Any]:
        try:
            return {"name": name, **(await work), "error": None}
        except VadplabError as exc:
            self._errors.append(exc)
            return {"name": name, "error": exc.to_dict()}

    @staticmethod
    async def _call(work: Any) -> Any:
        return await in_thread(work, deadline=DEADLINE, what="rescan")
