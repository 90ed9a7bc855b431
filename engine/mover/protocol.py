# SPDX-License-Identifier: MIT
"""What a Data Mover answers on its control connection (mutual TLS, `docs/wire.md`), and the forms of the parameters.

method          parameters                                      result
hello           token                                           {name, role, version}; must be the first call
rules           throttle, compression, workers, silence         {}                              step 6
data.listen     as_step                                         {port, token}                   step 7, this side listens
data.connect    host, port, token, name, as_step                {}                              step 7, this side connects
source.open     mode or modes, failover, vcenter, vm, snapshot, {vmx, capacity, mode, host, failed_over: [{mode, code, message}]}
                disk, vmx, packing, chap                        steps 18, 19; 20a, 20b or 20c begins; progress {step, phase, text}
source.read     ranges, incremental, compare                    {total, read, zero, data, same, sent, clusters, root}   20, 21;
                                                                progress {read, total, sent, rate}, {step, phase, text}
target.open     folder, file, size, parent                      {}                              step 21, receiving side
target.commit   root (optional)                                 what `engine.store.target.Stored` holds;
                                                                progress {stored, total} while it verifies
reader.open     folder, disk, as_step, reads                    {port, token, size}             step r3; {size} after data.listen or
                                                                data.connect: the disk goes over that link
reader.wait     -                                               {clusters, sent} once the console has the whole disk;
                                                                {reads, sent} once it has ended its reads
writer.open     mode or modes, failover, vcenter, vm, disk,     {capacity, mode, host, failed_over}     on the proxy: a restored
                steps                                           VM's new disk is opened for writing
writer.write    -                                               {written, clusters, received}; progress {written, passed, total},
                                                                {step, phase, text} in both
abort           -                                               {}; what was begun is given up and removed

Modes are `san`, `hotadd`, `nbd`, `nbdssl`, and `auto` for what the proxy is configured for; they are tried in the given order
unless `failover` is false. `ranges` (`[[offset, length], ...]`, ascending): read only these; null: all. `incremental`: the
target has a parent, so zeros are sent too. `compare`: incremental without a list of changes: the source asks the target for
the parent's digests and sends only what differs (with `ranges`: within them). `parent`: `{folder, disk}` of the point below.

`reads`: the disk is not sent; the console asks for what it needs of it (single files).

A restore into a VM: `reader.open` on the repository's mover, then on the proxy's, the writer, `data.connect` to its port,
`writer.open`, `writer.write`; `reader.wait` on the repository ends with it. In the other direction: `data.listen` on the
writer, `data.connect` and `reader.open` on the reader.

Sizes and offsets are bytes, rates bytes a second. Methods `source.*`, `target.*`, `reader.*` and `writer.*` are those of a mover
of that role (`engine.mover.roles`). When the control connection ends, or `hello` does not come in time, the mover gives up
and ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.modes.nfc.aio import Packing
from engine.modes.source import Extent
from engine.rpc.server import BadParams

if TYPE_CHECKING:
    from engine.modes.opening import Request

VERSION = "1"


class _Params(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Empty(_Params):
    """No parameters."""


class Hello(_Params):
    """The token of the ready line."""

    token: str


class Compression(_Params):
    """zstd at some level."""

    algorithm: Literal["zstd"] = "zstd"
    level: int = Field(default=1, ge=1, le=19)


class Rules(_Params):
    """What the Backup Manager sets in step 6. `silence`: seconds without a frame after which the other mover is gone."""

    throttle: int | None = Field(default=None, gt=0)
    compression: Compression = Compression()
    workers: int = Field(default=2, ge=1, le=16)
    silence: float = Field(default=30.0, gt=0, le=600)


class DataListen(_Params):
    """`as_step`: 7, another in a restore."""

    as_step: str = "7"


class DataConnect(_Params):
    """Where the other mover listens, its token, and its machine's name. `as_step`: 7, another in a restore."""

    as_step: str = "7"

    host: str
    port: int = Field(ge=1, le=65535)
    token: str
    name: str


class Vcenter(_Params):
    """How to log in (step 18)."""

    name: str
    address: str
    port: int = Field(default=443, ge=1, le=65535)
    thumbprint: str | None = None
    username: str
    password: str = Field(repr=False)


class Vm(_Params):
    """The VM, by its managed object reference."""

    name: str
    moref: str
    uuid: str = ""


class Disk(_Params):
    """The disk as of the snapshot: key, datastore path, capacity."""

    key: int
    path: str
    capacity: int = Field(ge=0, multiple_of=512)


class ChapSecret(_Params):
    """CHAP name and secret that take the place of the proxy's configured ones."""

    username: str
    secret: str = Field(repr=False)


class _Modes(_Params):
    """Which modes: `modes` in order, or one `mode`; `failover`: whether the next is tried when one fails."""

    mode: str | None = None
    modes: list[str] | None = None
    failover: bool = True
    vcenter: Vcenter
    vm: Vm
    disk: Disk

    @property
    def in_order(self) -> tuple[str, ...]:
        """The modes as they were given."""
        return tuple(self.modes if self.modes is not None else [self.mode] if self.mode is not None else [])


class SourceOpen(_Modes):
    """What to open, in which modes. `snapshot`: its managed object reference. `packing`: Network mode's compression on the wire."""

    snapshot: str | None = None
    vmx: str
    packing: Literal["none", "zlib"] = "none"
    chap: ChapSecret | None = None

    def request(self) -> Request:
        """For `engine.modes.opening`, which is loaded on proxies only."""
        from engine.modes.opening import Request

        return Request(
            modes=self.in_order,
            failover=self.failover,
            vcenter=self.vcenter.model_dump(),
            vm=self.vm.moref,
            snapshot=self.snapshot,
            key=self.disk.key,
            path=self.disk.path,
            capacity=self.disk.capacity,
            vmx=self.vmx,
            chap=(self.chap.username, self.chap.secret) if self.chap else None,
            packing=Packing.ZLIB if self.packing == "zlib" else Packing.NONE,
        )


class SourceRead(_Params):
    """What to read: all (null), or ranges of the disk; and how what is not sent is meant."""

    ranges: list[tuple[int, int]] | None = None
    incremental: bool = False
    compare: bool = False

    def extents(self, capacity: int) -> list[Extent] | None:
        """The ranges, checked against the disk's size (an area may end behind it: disks shrink). Raises BadParams."""
        if self.ranges is None:
            return None
        found: list[Extent] = []
        last = 0
        for offset, length in self.ranges:
            if offset < last or length <= 0:
                raise BadParams(f"source.read: ranges: {offset}+{length} is empty, or not behind the one before it")
            last = offset + length
            if offset < capacity:
                found.append((offset, min(length, capacity - offset)))
        return found


class WriterSteps(_Params):
    """Ids of the steps of a restore into a VM, as its caller numbers them."""

    choose: str = "r7"
    login: str = "r8"
    connect: str = "r9"
    hotadd: str = "r10b"
    network: str = "r10c"


class WriterOpen(_Modes):
    """The disk of a restored VM that is to be written: new, so it reads as zeros. `steps`: ids for events and errors."""

    steps: WriterSteps = WriterSteps()

    def request(self) -> Request:
        """For `engine.modes.opening`, which is loaded on proxies only."""
        from engine.modes.opening import Request

        return Request(
            modes=self.in_order,
            failover=self.failover,
            vcenter=self.vcenter.model_dump(),
            vm=self.vm.moref,
            snapshot=None,
            key=self.disk.key,
            path=self.disk.path,
            capacity=self.disk.capacity,
            vmx=None,
        )


class Parent(_Params):
    """The disk of the restore point below: the point's folder, the disk's key."""

    folder: str
    disk: int


class TargetOpen(_Params):
    """Where the disk of the restore point in the making is written; `parent`: what it is incremental to."""

    folder: str
    file: str
    size: int = Field(ge=0, multiple_of=512)
    parent: Parent | None = None


class TargetCommit(_Params):
    """`root`: the digest that `source.read` gave, compared once more."""

    root: str | None = None


class ReaderOpen(_Params):
    """The folder of a visible restore point and the disk's key. `as_step`: in which step the data goes out."""

    folder: str
    disk: int
    as_step: str = "r3"
    reads: bool = False


P = TypeVar("P", bound=_Params)


def parse(model: type[P], method: str, params: dict[str, Any]) -> P:
    """The parameters of a call. Raises BadParams naming what is wrong, without values (they may be secrets)."""
    try:
        return model.model_validate(params)
    except ValidationError as exc:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'parameters'}: {e['msg']}"
            for e in exc.errors(include_input=False, include_url=False, include_context=False)
        )
        raise BadParams(f"{method}: {wrong}") from exc
