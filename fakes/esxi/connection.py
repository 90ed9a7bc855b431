# SPDX-License-Identifier: MIT
"""The life of one connection to TCP 902, in the order of the nfc reference section 1.

Greeting in clear, TLS, the authd dialogue, then NFC: in clear (`nfc`) or in a second TLS (`nfcssl`) on the same connection.
Runs in a thread of its own; whatever the peer does ends here, with a line in the journal.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fakes.esxi.authd import GREETING, Answer, Dialogue
from fakes.esxi.channel import Channel, Link, TlsChannel
from fakes.esxi.datastores import Datastores
from fakes.esxi.journal import Journal
from fakes.esxi.nfc import NfcConversation
from fakes.esxi.tickets import Ticket, digest
from fakes.esxi.wire import WireError

_TLS_HANDSHAKE = 0x16
_LINGER = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the host allows. Times in seconds.

    `authd`: from the connect to PROXY. `idle`: without a byte from an NFC client. `connections`: NFC connections at once
    (about 52 on real hosts). `one_disk`: one open disk a connection. `nfc_version`: 11 on ESXi 8, 9 on 7.0.3.
    """

    authd: float = 60.0
    idle: float = 900.0
    connections: int = 52
    one_disk: bool = True
    nfc_version: int = 11


class Connection:
    """One client of 902.

    Args:
        dialogue: makes the authd state machine.
        datastores: opens the files of a ticket; called once when NFC begins.
    """

    def __init__(
        self,
        sock: socket.socket,
        client: tuple[str, int],
        *,
        tls: ssl.SSLContext,
        limits: Limits,
        journal: Journal,
        dialogue: Dialogue,
        datastores: Callable[[], Datastores],
    ) -> None:
        self._sock = sock
        self._client = client
        self._tls = tls
        self._limits = limits
        self._journal = journal
        self._dialogue = dialogue
        self._datastores = datastores
        self._service: str | None = None
        self._conversation: NfcConversation | None = None

    def run(self) -> None:
        """Serves the client to its end; raises nothing that the peer can cause."""
        self._report("connect")
        reason = "done"
        try:
            self._serve()
        except TimeoutError as exc:
            reason = f"timed out: {exc}"
        except ssl.SSLError as exc:
            reason = f"TLS: {exc.reason or exc}"
        except WireError as exc:
            reason = f"protocol: {exc}"
        except EOFError:
            reason = "closed by the client"
        except OSError as exc:
            reason = f"cut: {exc.strerror or exc}"
        finally:
            self._end(reason)

    def _serve(self) -> None:
        link = Link(self._sock, self._limits.authd)
        link.until = time.monotonic() + self._limits.authd
        link.send([GREETING])
        first = memoryview(bytearray(1))
        link.receive(first)
        if first[0] != _TLS_HANDSHAKE:
            self._report("refused", code=0, reason="command before TLS")
            return
        link.pending[:0] = bytes(first)
        channel = TlsChannel(link, self._tls)
        self._report("tls", version=channel.version)
        answer = self._authd(channel)
        if answer is None or answer.ticket is None:
            return
        self._service = answer.service
        self._report("proxy", code=answer.code)
        self._nfc(channel, answer.ticket, answer.tls_again)

    def _authd(self, channel: Channel) -> Answer | None:
        """The accepted PROXY, or None when the client is done."""
        while True:
            answer = self._dialogue.feed(channel.line())
            if answer.reason is not None:
                self._report("refused", code=answer.code, reason=answer.reason)
            channel.send(answer.line())
            if answer.end:
                return None
            if answer.ticket is not None:
                return answer

    def _nfc(self, channel: TlsChannel, ticket: Ticket, tls_again: bool) -> None:
        link = channel.link
        data = channel.leave()
        if tls_again:
            link.until = time.monotonic() + self._limits.authd
            data = TlsChannel(link, self._tls)
            self._report("tls", version=data.version)
        link.until = None
        link.idle = self._limits.idle
        datastores = self._datastores()
        try:
            self._conversation = NfcConversation(
                data,
                ticket,
                datastores,
                version=self._limits.nfc_version,
                one_disk=self._limits.one_disk,
                report=self._report,
            )
            self._conversation.run()
        finally:
            datastores.close()

    def _report(self, event: str, **fields: Any) -> None:
        session = self._dialogue.session_id
        known = {"session": digest(session) if session else None, "service": self._service}
        self._journal.write(self._client, event, **known, **fields)

    def _end(self, reason: str) -> None:
        talk = self._conversation
        self._report(
            "close",
            bytes_read=talk.bytes_read if talk else 0,
            bytes_written=talk.bytes_written if talk else 0,
            reason=reason,
        )
        # What was sent last (an error, an alert) would be lost with a reset if unread bytes were left in the socket.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            self._sock.settimeout(0.2)
            until = time.monotonic() + _LINGER
            while time.monotonic() < until and self._sock.recv(65536):
                pass
        self._sock.close()
