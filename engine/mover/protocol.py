# SPDX-License-Identifier: MIT
"""What a Data Mover answers on its control connection (mutual TLS, `docs/wire.md`), and the forms of the parameters.

method          parameters                                      result
hello           token                                           {name, role, version}; must be the first call
rules           throttle, compression, cluster_bits, workers,   {}                              step 6
                silence
data.listen     -                                               {port, token}                   step 7, this side listens
data.connect    host, port, token, name                         {}                              step 7, this side connects
source.open     mode, vcenter, vm, snapshot, disk, vmx          {vmx, capacity, mode, host}     steps 18, 19, 20c begins
source.read     -                                               {total, read, zero, data, sent, blocks, root}   20c, 21;
                                                                progress {read, total, sent, rate}
target.open     folder, file, size                              {}                              step 21, receiving side
target.commit   root (optional)                                 {file, size, stored, digests, root, held};
                                                                progress {stored, total} while it verifies
restore.open    folder, disk                                    {port, token, size}             step r3
restore.wait    -                                               {blocks, sent} once the console has the whole disk
abort           -                                               {}; what was begun is given up and removed

Sizes and offsets are bytes, rates bytes a second. Roles: `source` (proxy), `target` and `restore` (repository). When the
control connection ends, or `hello` does not come in time, the mover gives up and ends.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.rpc.server import BadParams

VERSION = "1"
Role = Literal["source", "target", "restore"]
ROLES: tuple[Role, ...] = ("source", "target", "restore")


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
    cluster_bits: Literal[16] = 16
    workers: int = Field(default=2, ge=1, le=16)
    silence: float = Field(default=30.0, gt=0, le=600)


class DataConnect(_Params):
    """Where the other mover listens, its token, and its machine's name."""

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


class SourceOpen(_Params):
    """What to open, in which mode. `snapshot`: its managed object reference (for modes that need it)."""

    mode: str
    vcenter: Vcenter
    vm: Vm
    snapshot: str | None = None
    disk: Disk
    vmx: str


class TargetOpen(_Params):
    """Where the disk of the restore point in the making is written."""

    folder: str
    file: str
    size: int = Field(ge=0, multiple_of=512)


class TargetCommit(_Params):
    """`root`: the digest that `source.read` gave, compared once more."""

    root: str | None = None


class RestoreOpen(_Params):
    """The folder of a visible restore point and the disk's key."""

    folder: str
    disk: int


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
