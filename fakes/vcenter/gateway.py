# SPDX-License-Identifier: MIT
"""The gateway: an HTTPS reverse proxy in front of a vcsim of its own, answering what vcsim lacks or would do wrongly.

One class for both views. `Gateway(view="vcenter", …)` serves a vCenter, `Gateway(view="host", host=NAME, …)` the same
inventory as that ESXi host shows it on its own 443. `start` gives the address, `stop` leaves nothing behind. Bytes and
the client's own cookie pass through; only calls with a handler are decoded. Requests that come while vcsim is being
rebuilt wait, and get a 503 when that takes too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import posixpath
import re
import shutil
import ssl
import tempfile
import uuid
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from pyVmomi import vim, vmodl

from fakes.core.certificate import thumbprint
from fakes.core.fabric import FabricError, serve
from fakes.core.inventory import EsxiHost, Inventory, VirtualMachine
from fakes.vcenter import builder, devices, guard, hoststorage, ovf, reports, simulator, soap, tasks
from fakes.vcenter.access import FileAccess
from fakes.vcenter.admin import AdminSession
from fakes.vcenter.attachments import Attachments
from fakes.vcenter.browsing import Browsing, Listing
from fakes.vcenter.calls import Context, Handler, SoapFault, fault_name
from fakes.vcenter.changes import Changes, Pages
from fakes.vcenter.collectors import Collectors
from fakes.vcenter.files import Files
from fakes.vcenter.folder import Folder
from fakes.vcenter.guest import GuestOperations
from fakes.vcenter.hoststorage import HostStorage
from fakes.vcenter.http import Reply, Request
from fakes.vcenter.journal import Journal
from fakes.vcenter.keeper import Keeper, NotReady
from fakes.vcenter.leases import Leases
from fakes.vcenter.machines import Machines
from fakes.vcenter.moving import Moving
from fakes.vcenter.nfc import VERSIONS, NfcService
from fakes.vcenter.passing import pass_on
from fakes.vcenter.power import Power
from fakes.vcenter.reconfigure import Reconfigure
from fakes.vcenter.rest import Rest
from fakes.vcenter.reverting import Reverting
from fakes.vcenter.running import Runner
from fakes.vcenter.sanitise import Sanitiser
from fakes.vcenter.server import HttpsServer
from fakes.vcenter.snapshots import LOOK, Snapshots
from fakes.vcenter.source import VcsimSource
from fakes.vcenter.storage import Storage
from fakes.vcenter.upstream import Upstream, UpstreamGone
from fakes.vcenter.world import Running, World

_log = logging.getLogger(__name__)
_FAULT = re.compile(rb"<\w+Fault(?:\s[^>]*)?\sxsi:type=\"(\w+)\"")
_SOAP_PATHS = ("/sdk", "/sdk/vimService")
API_VERSION = "8.0.3.0"
ATTACHED_STUBS = "/tmp"  # the one folder that a container made from nothing has; VMs' folders are apart in it
READY_DEADLINE = 30.0


@dataclass
class Settings:
    """What a gateway presents and where it keeps things.

    `flags`: further flags of vcsim (alone, without an inventory). `state`: a folder for vcsim's stubs; None = temporary.
    `attach`: address of an empty vcsim that somebody else started (a container), instead of a child.
    `pages`: how much one answer about changed areas covers.
    """

    source: VcsimSource
    certificate: Path
    inventory: Inventory | None = None
    view: Literal["vcenter", "host"] = "vcenter"
    host: str | None = None
    fabric: Path | None = None
    journal: Path | None = None
    state: Path | None = None
    flags: Sequence[str] = ()
    attach: tuple[str, int] | None = None
    pages: Pages = field(default_factory=Pages)
    username: str = "administrator"
    password: str = field(default="VMware1!", repr=False)


@dataclass
class _Address:
    host: str = ""
    port: int = 0

    @property
    def text(self) -> str:
        return self.host if self.port == 443 else f"{self.host}:{self.port}"


@dataclass
class Gateway:
    """See the module. Attributes that other rooms read: `storage`, `owns_tasks`, `access`."""

    settings: Settings = field(repr=False)
    storage: Storage | None = field(init=False, default=None)
    owns_tasks: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        settings = self.settings
        inventory = settings.inventory
        self.owns_tasks = settings.view == "vcenter"
        if settings.view == "host" and (inventory is None or settings.host not in {h.name for h in inventory.hosts}):
            raise ValueError(f"the host view needs an inventory that has the host {settings.host}")
        self._vms = {vm.name: vm for vm in (inventory.vms if inventory else []) if self._shows(vm)}
        if settings.fabric is not None and inventory is not None:
            self.storage = Storage(settings.fabric)
        self._locks: dict[str, asyncio.Lock] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._address = _Address()
        self._journal = Journal(settings.journal)
        self._state: Path | None = None
        self._lives = 0
        self._reports: dict[str, dict[str, Any]] = {}
        self._fabric_server: asyncio.Server | None = None
        self.guest = GuestOperations()
        self._host_storage = HostStorage()
        runner = Runner(self)
        self._attachments = Attachments(self.storage, settings.fabric, inventory)
        self._power = Power(self, runner, self._attachments, self._went_down)
        self._snapshots = Snapshots(self, runner)
        self._machines = Machines(self, runner, self._power, self._attachments, inventory, self._vms)
        self._collectors = Collectors()
        hosts = {str(host.address): name for name, host in self._hosts().items()}
        self.access = FileAccess(hosts if settings.view == "vcenter" else {}, settings.fabric)
        listing = Listing(self, inventory)
        self._leases = Leases(self, runner, self._machines)
        self._folder = Folder(self, listing, self._datacenter())
        self._rest = Rest(lambda: self._host_storage.luns)
        self._nfc = NfcService(settings.view, self._hosts(), self._vms, settings.fabric)
        self._handlers: dict[str, Handler] = {
            "Fetch": self._fetch,
            "Login": self._login,
            "TerminateSession": self._terminate,
            **self._guards(),
            **self.access.handlers(),
            **self._collectors.handlers(),
            **self._leases.handlers(),
            **ovf.handlers(),
            **Browsing(self, runner, listing).handlers(),
            **Files(listing).handlers(),
            **self._power.handlers(),
            **self._snapshots.handlers(),
            **Reverting(self, runner, self._power).handlers(),
            **Changes(self, runner, settings.pages).handlers(),
            **Reconfigure(self, runner, self._power, self._attachments, inventory).handlers(),
            **(self._on_vcenter(runner) if settings.view == "vcenter" else {}),
            **self._nfc.handlers(),
            **self.guest.handlers(),
        }
        self._keeper = Keeper(self._make_world, self._lost)
        self._server: HttpsServer | None = None

    def _guards(self) -> dict[str, Handler]:
        made: dict[str, Handler] = {
            "CancelTask": tasks.cancel,
            "UpdateOptions": guard.update_options,
            "Reload": guard.reload,
            "SetLocale": guard.set_locale,
        }
        if self.settings.inventory is not None:
            made |= dict.fromkeys(("CreateLocalDatastore", "CreateNasDatastore"), guard.no_datastore)
        return made

    def _on_vcenter(self, runner: Runner) -> dict[str, Handler]:
        moving = Moving(self, runner, self._power, self.settings.inventory)
        return self._machines.handlers() | moving.handlers()

    def _shows(self, vm: VirtualMachine) -> bool:
        return self.settings.view == "vcenter" or vm.host == self.settings.host

    def _hosts(self) -> dict[str, EsxiHost]:
        return {host.name: host for host in (self.settings.inventory.hosts if self.settings.inventory else [])}

    # life

    async def start(self, address: str, port: int) -> tuple[str, int]:
        """Starts vcsim, builds the inventory and serves; returns the address it listens on.

        Raises:
            OSError: the port is taken, or the certificate can not be read. SimulatorFailed, FabricError,
            vmodl.MethodFault: the inventory could not be built.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.settings.certificate)
        self._server = HttpsServer(self.handle, context)
        if self.settings.state is None:
            self._state = Path(tempfile.mkdtemp(prefix="vcenter-"))
        else:
            self._state = self.settings.state
            self._state.mkdir(parents=True, exist_ok=True)
        try:
            host, port = await self._server.start(address, port)
            self._address = _Address(host, port)
            await self._keeper.start()
            if self.settings.fabric is not None and self.settings.view == "vcenter":
                self._fabric_server = await serve(self.settings.fabric / "vcenter.sock", self.reported)
        except BaseException:
            await self.stop()
            raise
        return host, port

    async def stop(self) -> None:
        """Ends serving, background work and vcsim; removes what was temporary."""
        if self._server is not None:
            await self._server.stop()
        if self._fabric_server is not None:
            self._fabric_server.close()
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background, timeout=10)
        await self._keeper.stop()
        self._journal.close()
        if self._state is not None and self.settings.state is None:
            await asyncio.to_thread(shutil.rmtree, self._state, ignore_errors=True)

    def _lost(self, reason: str) -> None:
        _log.warning("%s; building it anew", reason)
        self._journal.write(None, "vcsim", "", None, "lost", {"reason": reason})

    async def _make_world(self) -> World:
        assert self._state is not None
        settings, inventory = self.settings, self.settings.inventory
        self._lives += 1
        flags = ["-api-version", API_VERSION]
        if inventory is None:
            flags += settings.flags
        elif settings.view == "host":
            flags += ["-esx", "-vm", "0", "-ds", "0"]
        else:
            flags += ["-dc", "0"]
        stubs = self._state / f"stubs-{self._lives}"
        for earlier in self._state.glob("stubs-*"):  # of this gateway, or of one that was killed
            await asyncio.to_thread(shutil.rmtree, earlier, ignore_errors=True)
        child: Running
        dial = None
        if settings.attach is not None:
            child, stubs = simulator.Attached(*settings.attach), Path(ATTACHED_STUBS)
        elif settings.source.executable is None:
            from fakes.vcenter import docker  # the SDK is only needed here

            image = settings.source.image or ""
            child = container = await docker.start(image, settings.username, settings.password, self._state, flags)
            dial, stubs = container.dial, Path(ATTACHED_STUBS)
        else:
            child = await simulator.start(
                settings.source.executable, flags, settings.username, settings.password, self._state
            )
        upstream = Upstream(child.host, child.port, dial)
        world = World(child, upstream, AdminSession(upstream), Sanitiser(host_storage=self._host_storage.patch))
        world.sanitiser.entity_name = lambda moid: world.places.vm_name(moid)
        try:
            await world.admin.login(settings.username, settings.password)
            self.owns_tasks = world.admin.content.about.apiType == "VirtualCenter"
            await self._prepare(world)
            if inventory is not None:
                await self._build(world, inventory, stubs)
        except BaseException:
            await world.close()
            raise
        return world

    async def _prepare(self, world: World) -> None:
        admin, about = world.admin, world.admin.content.about
        public = self._address.text
        behind = f"{world.upstream.host}:{world.upstream.port}"
        replace = {f"http://{behind}".encode(): f"https://{public}".encode(), behind.encode(): public.encode()}
        replace[b"<managementServerIp>127.0.0.1</managementServerIp>"] = (
            f"<managementServerIp>{self._address.host}</managementServerIp>".encode()
        )
        if about.instanceUuid:
            stable = uuid.uuid5(uuid.NAMESPACE_URL, f"https://{public}/sdk")
            replace[about.instanceUuid.encode()] = str(stable).encode()
        if self.settings.view == "host":
            assert self.settings.host is not None
            replace[b"localhost.localdomain"] = self.settings.host.encode()
        world.sanitiser.replace = replace
        world.sanitiser.thumbprint = thumbprint(self.settings.certificate, "sha1").encode()
        world.sanitiser.own_session = admin.key.encode()
        # leases name the gateway in their URLs (vcsim reference section 13)
        option = vim.option.OptionValue(key="vcsim.server.url", value=f"https://{public}/sdk")
        await admin.call(admin.content.setting, "UpdateOptions", changedValue=[option])
        if self.owns_tasks:
            await tasks.announce(admin)

    async def _build(self, world: World, inventory: Inventory, stubs: Path) -> None:
        if self.settings.view == "host":
            assert self.settings.host is not None
            world.places = await builder.build_host(world.admin, inventory, self._hosts()[self.settings.host], stubs)
        else:
            world.places = await builder.build_vcenter(world.admin, inventory, stubs)
        if self.settings.view == "vcenter" and self._lives == 1:
            await self._machines.adopt()
        for vm in list(self._vms.values()):
            async with self.lock(vm.name):
                await self.show(world, vm)
        for name in list(self._vms):
            if self.storage is not None and await self._attachments.show(world, name, world.places.vms[name]):
                await self._attachments.plug_all(name)
        await self._read_luns(world)
        for name, reference in world.places.hosts.items():
            paths = ("configManager.virtualNicManager", "configManager.networkSystem")
            managers = (await world.admin.properties(reference, *paths)).values()
            for each in (reference, *managers):
                world.sanitiser.addresses[each._moId] = str(self._hosts()[name].address).encode()

    async def show(self, world: World, vm: VirtualMachine) -> Any:
        """Makes vcsim show a VM as the storage holds it, its lock being held; returns its reference."""
        state = await self.storage.ensure(vm) if self.storage is not None else None
        on = state.power_on if state is not None and self._lives > 1 else vm.power == "on"
        shown = (state.machine if state is not None else vm).model_copy(update={"power": "on" if on else "off"})
        self.remember(shown)
        reference = await builder.build_vm(world.admin, world.places, shown)
        await devices.remember_stubs(world, self._datacenter(), shown)
        await devices.assign(world, reference, reports.guest_defaults(vm))
        if vm.name in self._reports:
            await devices.assign(world, reference, reports.guest_report(vm, self._reports[vm.name]))
        if self.storage is not None and state is not None:
            if state.power_on != on and self.settings.view == "vcenter":
                await self.storage.power(vm, on)
                state = await self.storage.get(vm)
            await self._snapshots.replay(world, vm, state)
        return reference

    async def _read_luns(self, world: World) -> None:
        """What hosts show of the storage below them; of a storage that does not answer they show what they knew."""
        inventory, luns = self.settings.inventory, dict(self._host_storage.luns)
        if self.storage is None or inventory is None:
            return
        for store in inventory.datastores:
            try:
                luns[store.name] = hoststorage.lun(await asyncio.wait_for(self.storage.info(store.name), LOOK))
            except (FabricError, TimeoutError) as exc:
                _log.warning("the LUN of %s is not known: %s", store.name, exc or "no answer")
        references: dict[str, tuple[str, ...]] = {}
        for name, host in world.places.hosts.items():
            system = (await world.admin.properties(host, "configManager.storageSystem")).values()
            references[name] = (host._moId, *(each._moId for each in system))
        self._host_storage.set(inventory, list(luns.values()), references)

    def _datacenter(self) -> str:
        inventory = self.settings.inventory
        return "ha-datacenter" if self.settings.view == "host" or inventory is None else inventory.datacenter

    # what the rooms need (snapshots.Owner)

    def lock(self, vm: str) -> asyncio.Lock:
        """The lock of a VM, by its name (or its reference when the inventory does not hold it)."""
        return self._locks.setdefault(vm, asyncio.Lock())

    def vm(self, name: str) -> VirtualMachine | None:
        """A VM of the inventory, as far as this view shows it."""
        return self._vms.get(name)

    def remember(self, vm: VirtualMachine) -> None:
        """A VM as it is now: it has other disks, or is new."""
        self._vms[vm.name] = vm
        self._attachments.bios[vm.name] = vm.uuid

    def spawn(self, work: Awaitable[None]) -> None:
        """Runs work that outlives its request; `stop` ends it."""
        task = asyncio.ensure_future(_run(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def note(self, context: Context, method: str, status: int | None, fault: str | None, detail: Any) -> None:
        """A further journal entry about a call."""
        self._journal.write(context.client, method, context.call.this, status, fault, detail)

    async def world(self) -> World:
        """The living world. Raises NotReady."""
        return await self._keeper.current(READY_DEADLINE)

    # what hosts and guests report over the fabric

    async def reported(self, method: str, params: dict[str, Any]) -> Any:
        """`tools.report`, `vm.power` and `bus.started` of `vcenter.sock`. Raises FabricError."""
        vm = self._vms.get(str(params.get("vm")))
        if vm is None:
            raise FabricError("not-found", f"no VM named {params.get('vm')}")
        if method not in ("tools.report", "vm.power", "bus.started"):
            raise FabricError("unknown-method", method)
        world = await self.world()
        reference = world.places.vms[vm.name]
        async with self.lock(vm.name):
            try:
                if method == "bus.started":
                    return {"plugged": await self._attachments.plug_all(vm.name)}
                if method == "tools.report":
                    self._reports[vm.name] = params
                    await devices.assign(world, reference, reports.guest_report(vm, params))
                else:
                    await self._power.set(world, vm, reference, bool(params["on"]))
            except (vmodl.MethodFault, UpstreamGone, TimeoutError) as exc:
                raise FabricError("failed", f"{method}: {exc}") from exc
        return None

    async def _went_down(self, world: World, vm: VirtualMachine, reference: Any) -> None:
        self._reports.pop(vm.name, None)
        await devices.assign(world, reference, reports.guest_defaults(vm))

    # requests

    async def handle(self, request: Request) -> Reply:
        """One request of a client."""
        # decided on what vcsim will make of it, which decodes before it looks
        path = posixpath.normpath("/" + unquote(request.path).lstrip("/"))
        try:
            if path in _SOAP_PATHS and request.method == "POST":
                return await self._soap(request)
            if path == "/sdk/nfcServiceVersions.xml" and request.method in ("GET", "HEAD"):
                return Reply.xml(200, VERSIONS)
            hidden = guard.HIDDEN_PATHS if self.settings.inventory is not None else guard.HIDDEN_PATHS[1:]
            if path.startswith(hidden):
                return Reply.text(404, "not found")
            world = await self.world()
            if path.startswith("/nfc/") and (offered := await self._leases.serve(request, path)) is not None:
                return offered
            if path.startswith(guard.SESSION_PATHS):
                if not await self.access.allows(world, request):
                    return Reply.text(401, "not logged in", ("WWW-Authenticate", 'Basic realm="VMware HTTP server"'))
                is_folder = path == "/folder" or path.startswith("/folder/")
                if request.method not in ("GET", "HEAD", "PUT", "POST", *(("DELETE",) if is_folder else ())):
                    return Reply.text(501, f"{request.method} is not offered here")
                if is_folder:
                    return await self._folder.handle(world, request, path)
                return await pass_on(world.upstream, request, self.spawn)
            if self.settings.view == "vcenter" and (told := await self._rest.handle(world, request, path)) is not None:
                return told
            if await guard.is_climbing(request):
                return Reply.text(400, "not the name of a file")
            return await _named(world, await pass_on(world.upstream, request, self.spawn))
        except NotReady as exc:
            return Reply.text(503, str(exc), ("Retry-After", "2"))
        except UpstreamGone as exc:
            return Reply.text(503, f"the service broke off: {exc}", ("Retry-After", "2"))
        except TimeoutError:
            return Reply.text(504, "no answer in time")

    async def _soap(self, request: Request) -> Reply:
        raw = await request.body.read(soap.MAX_REQUEST)
        try:
            call = soap.identify(raw)
        except soap.MalformedRequest as exc:
            self._journal.write(request.client, "", "", 500, "InvalidRequest")
            return Reply.xml(500, soap.fault(vmodl.fault.InvalidRequest(), f"Malformed request: {exc}"))
        context: Context | None = None
        try:
            context = Context(await self.world(), call, raw, request.headers, request.client)
            guard.check(call)
            reply = await self._handlers.get(call.method, Context.forward)(context)
            fault = None
            if reply.status != 200 and isinstance(reply.body, bytes):
                match = _FAULT.search(reply.body)
                fault = match[1].decode() if match else None
        except SoapFault as exc:
            reply, fault = Reply.xml(500, soap.fault(exc.value, exc.message)), fault_name(exc.value)
        except soap.MalformedRequest as exc:
            reply = Reply.xml(500, soap.fault(vmodl.fault.InvalidRequest(), f"Malformed request: {exc}"))
            fault = "InvalidRequest"
        except vmodl.MethodFault as exc:
            reply, fault = Reply.xml(500, soap.fault(exc)), fault_name(exc)
        except (UpstreamGone, TimeoutError) as exc:
            reply, fault = await self._broken(context, exc)
        except NotReady as exc:
            reply, fault = Reply.text(503, str(exc), ("Retry-After", "2")), None
        except Exception:
            _log.exception("%s on %s", call.method, call.this)
            value = vmodl.fault.SystemError(reason="internal error")
            reply, fault = Reply.xml(500, soap.fault(value, "A general system error occurred.")), "SystemError"
        self._journal.write(
            request.client, call.method, call.this, reply.status, fault, context.detail if context else None
        )
        return reply

    async def _broken(self, context: Context | None, exc: Exception) -> tuple[Reply, str | None]:
        """vcsim gave no reply: 503 when it is gone, else a fault (it may have panicked, then it is replaced)."""
        if isinstance(exc, UpstreamGone):
            if context is not None:
                self._keeper.suspect(context.world)
            return Reply.text(503, "the service is being restarted", ("Retry-After", "2")), None
        value = vmodl.fault.SystemError(reason="no answer in time")
        return Reply.xml(500, soap.fault(value, "A general system error occurred: no answer in time")), "SystemError"

    async def _fetch(self, context: Context) -> Reply:
        """Fetch reads one property; vcsim refuses some that a vCenter has, which are shown as unset instead."""
        own = context.call.this_type == "PropertyCollector" and context.call.leaf.get("prop") == "filter"
        pass_on = self._collectors.lead if own else Context.forward
        reply = GuestOperations.auth_manager(context) or await pass_on(context)
        if reply.status != 200 and isinstance(reply.body, bytes) and (match := _FAULT.search(reply.body)):
            call, fault = context.call, match[1]
            lacking = fault == b"InvalidProperty" and soap.has_property(call.this_type, call.leaf.get("prop", ""))
            # hosts are copied from a template whose references to some managers name nothing
            dangling = fault == b"ManagedObjectNotFound" and call.this_id.startswith("ha-")
            if lacking or dangling:
                return Reply.xml(200, soap.response("Fetch", ""))
        return reply

    async def _terminate(self, context: Context) -> Reply:
        """TerminateSession(sessionId): not of the gateway's own, which nobody is shown."""
        if context.world.admin.key in (soap.arguments(context.raw).get("sessionId") or []):
            await context.require_login()
            raise SoapFault(vim.fault.NotFound(), "The session is not there.")
        return await context.forward()

    async def _login(self, context: Context) -> Reply:
        """A new session sees what the storage holds by now, whoever made it: the other view may have."""
        reply = await context.forward()
        if reply.status == 200 and self.storage is not None:
            try:
                await self._read_luns(context.world)
            except (UpstreamGone, TimeoutError, vmodl.MethodFault) as exc:
                _log.warning("hosts can not be asked for their storage: %s", exc or "no answer")
            for name in list(context.world.places.vms):
                if self.lock(name).locked():
                    continue  # this gateway is changing it right now
                try:
                    async with self.lock(name):
                        await self._snapshots.reconcile(context.world, self._vms[name])
                        if self.settings.view == "host":
                            on = (await self.storage.get(self._vms[name])).power_on
                            await self._power.show(context.world, context.world.places.vms[name], on)
                except (FabricError, TimeoutError, vmodl.MethodFault) as exc:
                    _log.warning("%s can not be compared with its storage: %s", name, exc or "no answer")
        return reply


async def _named(world: World, reply: Reply) -> Reply:
    """A reply of a service beside `/sdk` (lookup, REST …) that names this gateway where vcsim names itself."""
    kind = (reply.headers.get("content-type") or "").partition(";")[0]
    if isinstance(reply.body, bytes) or kind not in ("text/xml", "application/json"):
        return reply
    body = world.sanitiser.rename(b"".join([part async for part in reply.body]))
    if body.strip() == b'{"value":null}':
        body = b'{"value":[]}\n'  # an empty list, in Go
    return Reply(reply.status, reply.headers, body, length=None if body else reply.length)


async def _run(work: Awaitable[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await work
