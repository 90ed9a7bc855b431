# SPDX-License-Identifier: MIT
"""The repository's half of a backup: receive batches and append them to the disk of a restore point in the making."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from engine.errors import ConnectError, RemoteError, VadplabError
from engine.mover.batches import batch_of
from engine.mover.datalink import DataLink
from engine.mover.errors import DataLinkSilent, DataProtocol, Stopped
from engine.store.clusters import CLUSTER_BITS
from engine.store.errors import on_host
from engine.store.point_disk import PointDisk
from engine.store.target import Stored, TargetDisk

DRAIN = 3.0


class TargetPipeline:
    """Receives one disk in a thread of its own, as soon as the link is there.

    Args:
        link: gives the open link; blocks until it is there, raises when it will not be.
        parent: the disk of the restore point below, open; closed with this one.
        host: this machine's name, for errors.
    """

    def __init__(
        self,
        folder: Path,
        file: str,
        size: int,
        link: Callable[[], DataLink],
        *,
        parent: PointDisk | None = None,
        host: str | None = None,
    ) -> None:
        self._host = host
        self.disk = TargetDisk(folder, file, size, parent=parent)
        self._link = link
        self._done = threading.Event()
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._root: str | None = None
        self._committed = False
        self._received = 0
        self._thread = threading.Thread(target=self._guard, name="target", daemon=True)
        self._thread.start()

    @property
    def root(self) -> str | None:
        """Root digest of what the source sent, as it said at the end of the stream."""
        return self._root

    def wait(self, deadline: float) -> bool:
        """Whether the stream ended, well or not, within `deadline` seconds."""
        return self._done.wait(deadline)

    def commit(self, deadline: float) -> Stored:
        """Waits for the end of the stream, then finishes and verifies the disk. Blocking.

        Raises:
            VadplabError: why the disk is not complete.
        """
        if not self.wait(deadline):
            raise DataLinkSilent(f"{self.disk.file}: the stream has not ended after {deadline:.0f} s", step="21")
        if self._error is not None:
            raise self._error
        stored = self.disk.commit(root=self._root)
        self._committed = True
        return stored

    def stop(self) -> None:
        """Gives up: what was written is removed, unless it was committed."""
        if self._committed:
            return
        self._stopped.set()
        if self._error is None:
            self._error = Stopped(f"{self.disk.file}: the task was stopped", step="21")
        if self._done.is_set():
            self.disk.discard()

    def _guard(self) -> None:
        link = None
        try:
            link = self._link()
            with on_host(self._host):
                self._receive(link)
        except VadplabError as exc:
            self._error = self._error or exc
            if link is not None and not isinstance(exc, RemoteError | ConnectError):  # the other side does not know yet
                link.fail(exc)
                link.drain(DRAIN)
        except BaseException as exc:
            self._error = self._error or exc
        finally:
            if self._error is not None:
                self.disk.discard()
            if link is not None:
                link.close()
            self._done.set()

    def _receive(self, link: DataLink) -> None:
        clusters = -(-self.disk.size >> CLUSTER_BITS)
        while not self._stopped.is_set():
            frame = link.receive()
            if frame.kind == "end":
                if frame.fields.get("data") != self._received or frame.fields.get("size") != self.disk.size:
                    raise DataProtocol(
                        f"{self._received} clusters received, the source sent another number", **link.where
                    )
                root = frame.fields.get("root")
                if not isinstance(root, str):
                    raise DataProtocol("the source sent no root digest", **link.where)
                self._root = root
                link.send("received", {"clusters": self._received})
                return
            first, lengths, digests = batch_of(frame, clusters, link)
            self.disk.add(first, lengths, digests, frame.payload)
            self._received += sum(1 for length in lengths if length)
        raise Stopped("the task was stopped", step="21")
