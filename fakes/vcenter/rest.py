# SPDX-License-Identifier: MIT
"""The REST API as far as clients of backups use it: sessions, lists of the inventory, tags, under `/api` and `/rest`.

vcsim has sessions and tags under `/rest` only. `/api` is led there and answers without the `value` around its results;
the lists are made here. Read from the automation API reference of vSphere 8 (`/api`) and 6.5 (`/rest`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from pyVmomi import vim, vmodl

from fakes.vcenter.hoststorage import Lun
from fakes.vcenter.http import Headers, Reply, Request
from fakes.vcenter.world import World

_SESSION = "/rest/com/vmware/cis/session"
_TAGGING = "/rest/com/vmware/cis/tagging"
_DEADLINE = 30.0
_MAX_BODY = 1 << 20
_POWER = {"poweredOn": "POWERED_ON", "poweredOff": "POWERED_OFF", "suspended": "SUSPENDED"}
_FOLDERS = {
    "Datacenter": "DATACENTER",
    "VirtualMachine": "VIRTUAL_MACHINE",
    "ComputeResource": "HOST",
    "Datastore": "DATASTORE",
    "Network": "NETWORK",
}
# kind of a list → type, properties
_KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "vm": (
        vim.VirtualMachine,
        ("name", "runtime.powerState", "config.hardware.numCPU", "config.hardware.memoryMB"),
    ),
    "host": (vim.HostSystem, ("name", "runtime.connectionState", "runtime.powerState")),
    "datastore": (vim.Datastore, ("name", "summary.capacity", "summary.freeSpace")),
    "cluster": (vim.ClusterComputeResource, ("name",)),
    "datacenter": (vim.Datacenter, ("name",)),
    "network": (vim.Network, ("name",)),
    "folder": (vim.Folder, ("name", "childType")),
    "resource-pool": (vim.ResourcePool, ("name",)),
}
_CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 409: "ALREADY_EXISTS"}


class Rest:
    """Requests below `/api` and `/rest`; `luns` says what is known of datastores, by their names."""

    def __init__(self, luns: Callable[[], dict[str, Lun]]) -> None:
        self._luns = luns

    async def handle(self, world: World, request: Request, path: str) -> Reply | None:
        """The reply; None where vcsim's own is wanted. Raises UpstreamGone, TimeoutError."""
        modern = path.startswith("/api/")
        if path == "/api/session":
            return await self._led(world, request, _SESSION)
        if path == "/api/cis/tagging" or path.startswith("/api/cis/tagging/"):
            return await self._led(world, request, _tags(path.removeprefix("/api/cis/tagging"), request))
        first, *words = path.strip("/").split("/")
        if first not in ("api", "rest") or words[:1] != ["vcenter"] or request.method != "GET":
            return None
        if not 2 <= len(words) <= 4 or words[1] not in _KINDS:
            return None
        if len(words) > 2 and (words[1] != "vm" or words[3:] not in ([], ["power"])):
            return None
        status, _ = await _ask(world, request, "GET", _SESSION, b"")
        if status != 200:
            return _refusal(401, "Authentication required.", modern=modern)
        found = await self._found(world, words[1])
        if len(words) == 2:
            query = parse_qs(urlsplit(request.target).query)
            return _reply(200, [each for each in found if _wanted(each, words[1], query)], modern=modern)
        one = next((each for each in found if each["vm"] == words[2]), None)
        if one is None:
            return _refusal(404, f"Virtual machine with identifier '{words[2]}' does not exist.", modern=modern)
        if words[3:]:
            return _reply(200, {"state": one["power_state"]}, modern=modern)
        details = {
            "name": one["name"],
            "power_state": one["power_state"],
            "cpu": {"count": one["cpu_count"]},
            "memory": {"size_MiB": one["memory_size_MiB"]},
        }
        return _reply(200, details, modern=modern)

    async def _led(self, world: World, request: Request, target: str) -> Reply:
        """A request of `/api` as vcsim's `/rest` has it, and the answer to that."""
        body = await request.body.read(_MAX_BODY)
        if body and request.method in ("POST", "PATCH") and "tag-association" not in target:
            key = b"create_spec" if request.method == "POST" else b"update_spec"
            body = b'{"%s": %s}' % (key, body) if target != _SESSION else b""
        status, answer = await _ask(world, request, request.method, target, body)
        if status >= 300:
            text = {401: "Authentication required.", 404: "Not found."}.get(status, "The request is refused.")
            return _refusal(status, text, modern=True)
        value = json.loads(answer)["value"] if answer.strip() else None
        if request.method == "GET" or "tag-association" in target:
            return Reply(204) if value is None and request.method != "GET" else _reply(200, value or [], modern=True)
        if value is None:
            return Reply(204)
        made = _reply(201, value, modern=True)
        if target == _SESSION:
            made.headers.items.append(("vmware-api-session-id", str(value)))
        return made

    async def _found(self, world: World, kind: str) -> list[dict[str, Any]]:
        type_, paths = _KINDS[kind]
        admin = world.admin
        view = await admin.call(
            admin.content.viewManager,
            "CreateContainerView",
            container=admin.content.rootFolder,
            type=[type_],
            recursive=True,
        )
        query = vmodl.query.PropertyCollector
        step = query.TraversalSpec(name="view", path="view", type=vim.view.ContainerView, skip=False)
        spec = query.FilterSpec(
            objectSet=[query.ObjectSpec(obj=view, skip=True, selectSet=[step])],
            propSet=[query.PropertySpec(type=type_, pathSet=list(paths))],
        )
        try:
            objects = await admin.call(admin.content.propertyCollector, "RetrieveProperties", specSet=[spec])
        finally:
            await admin.call(view, "DestroyView")
        told = [(str(each.obj._moId), {p.name: p.val for p in each.propSet or []}) for each in objects or []]
        return [self._shown(kind, moid, values) for moid, values in told]

    def _shown(self, kind: str, moid: str, told: dict[str, Any]) -> dict[str, Any]:
        shown = {kind.replace("-", "_"): moid, "name": told.get("name")}
        match kind:
            case "vm":
                shown["power_state"] = _POWER[told["runtime.powerState"]]
                shown["cpu_count"] = told.get("config.hardware.numCPU")
                shown["memory_size_MiB"] = told.get("config.hardware.memoryMB")
            case "host":
                shown["connection_state"] = str(told["runtime.connectionState"]).upper()
                shown["power_state"] = _POWER[told["runtime.powerState"]]
            case "datastore":
                known = self._luns().get(str(told.get("name")))
                shown["type"] = "VMFS"
                shown["capacity"] = known.size if known else told.get("summary.capacity")
                shown["free_space"] = known.free if known else told.get("summary.freeSpace")
            case "cluster":
                shown |= {"ha_enabled": False, "drs_enabled": False}
            case "network":
                shown["type"] = "STANDARD_PORTGROUP"
            case "folder":
                # types, or names of types that pyVmomi does not know
                kinds = [getattr(each, "__name__", str(each)).rpartition(".")[2] for each in told["childType"]]
                shown["type"] = next((_FOLDERS[each] for each in kinds if each in _FOLDERS), "DATACENTER")
        return shown


def _tags(path: str, request: Request) -> str:
    """`/tag/<id>?action=x` of `/api` as `/rest` has it: `/tag/id:<id>?~action=x`."""
    words = [word for word in path.split("/") if word]
    if len(words) > 1:
        words[1] = f"id:{words[1]}"
    query = {f"~{key}": value for key, (value, *_) in parse_qs(urlsplit(request.target).query).items()}
    return "/".join([_TAGGING, *words]) + (f"?{urlencode(query)}" if query else "")


def _wanted(shown: dict[str, Any], kind: str, query: dict[str, list[str]]) -> bool:
    """Whether an object passes the filters (`names`, `vms`, `power_states` …; `/rest` has `filter.` before them)."""
    own = kind.replace("-", "_")
    fields = {f"{own}s": own, "names": "name", "power_states": "power_state", "types": "type"}
    for key, values in query.items():
        # `/rest` numbers the values: filter.names.1
        name = key.removeprefix("filter.").rstrip("0123456789").rstrip(".")
        field = fields.get(name)
        if field is not None and str(shown.get(field)) not in values:
            return False
    return True


async def _ask(world: World, request: Request, method: str, target: str, body: bytes) -> tuple[int, bytes]:
    wanted = ("authorization", "cookie", "vmware-api-session-id", "vmware-use-header-authn")
    headers = Headers([(name, value) for name, value in request.headers.items if name.lower() in wanted])
    if body:
        headers.items.append(("Content-Type", "application/json"))
    answer = await world.upstream.request(method, target, headers, body, _DEADLINE)
    return answer.status, answer.body


def _reply(status: int, value: Any, *, modern: bool) -> Reply:
    return _json(status, value if modern else {"value": value})


def _json(status: int, body: Any) -> Reply:
    return Reply(status, Headers([("Content-Type", "application/json")]), json.dumps(body).encode())


def _refusal(status: int, text: str, *, modern: bool) -> Reply:
    code = _CODES.get(status, "ERROR")
    messages = [{"id": f"com.vmware.vapi.std.errors.{code.lower()}", "default_message": text, "args": []}]
    if modern:
        return _json(status, {"error_type": code, "messages": messages})
    return _json(status, {"type": f"com.vmware.vapi.std.errors.{code.lower()}", "value": {"messages": messages}})
