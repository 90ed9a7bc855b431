# SPDX-License-Identifier: MIT
"""HotAdd at the datastore: disk files are attached to another VM and detached from it, each a change of structure."""

from __future__ import annotations

from fakes.core.fabric import FabricError
from fakes.storage import paths
from fakes.storage.attachments import MODES, NONPERSISTENT
from fakes.storage.datastore import Datastore
from fakes.storage.exports import Exports


class HotAdd:
    """What vCenter asks of a datastore when it reconfigures a VM with another VM's disks."""

    def __init__(self, store: Datastore, exports: Exports) -> None:
        self._store = store
        self._exports = exports

    def attach(self, path: str, by: str, mode: str = NONPERSISTENT) -> dict[str, object]:
        """Attaches a disk file to a VM; the structure has it when this returns.

        Raises:
            FabricError: `bad-path`, `bad-name` (by), `bad-mode`, `not-found`, `locked` (the running disk of a VM, or
                attached already), `read-only` (a persistent mode for a frozen file).
        """
        paths.checked_name(by, "VM")
        if mode not in MODES:
            raise FabricError("bad-mode", f"no disk mode {mode!r}: one of {', '.join(MODES)}")
        with self._store.lock:
            resolved = self._exports.resolve(path, write=mode != NONPERSISTENT)
            made = self._store.attachments.add(path, by, mode)
            try:
                self._store.save()
            except BaseException:
                self._store.attachments.remove(path, by)
                raise
        return {**made.shown(), "size": resolved["size"], "vm": resolved["vm"], "key": resolved["key"]}

    def detach(self, path: str, by: str) -> None:
        """Takes an attached disk file away from a VM; its connections end, what was written to it is thrown away.

        Raises:
            FabricError: `not-found`, that VM does not have it.
        """
        with self._store.lock:
            ended = self._store.attachments.remove(path, by)
            try:
                self._store.save()
            except BaseException:
                self._store.attachments.restore(ended)
                raise
        ended.end()

    def attachments(self, by: str | None = None) -> list[dict[str, object]]:
        """All attachments, or those of one VM."""
        shown = []
        with self._store.lock:
            for each in self._store.attachments.all():
                if by is None or each.record.by == by:
                    vm, disk, _ = found if (found := self._store.find(each.record.path)) else (None, None, None)
                    more = {"size": disk.size, "vm": vm.name, "key": disk.key} if vm and disk else {}
                    shown.append({**each.shown(), **more})
        return shown
