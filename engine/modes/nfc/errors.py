# SPDX-License-Identifier: MIT
"""What can go wrong on TCP 902: one class, with a code of its own, for each thing a reader must tell apart (nfc reference 5)."""

from __future__ import annotations

from engine.errors import (
    AuthenticationFailed,
    ConnectError,
    ConnectReset,
    ConnectTimedOut,
    ThumbprintMismatch,
    VadplabError,
)


class NoGreeting(ConnectError):
    """The connection opened, but no authd greeting came."""

    code = "nfc.no-greeting"
    symptom = "no greeting"
    advice = "A middlebox accepts in the host's place, or packets from the host are lost: check both directions of 902."


class NotAuthd(ConnectError):
    """What answers on the port is not an authentication daemon that asks for SSL."""

    code = "nfc.greeting"
    symptom = "unexpected greeting"
    advice = "Check that the ticket's address and port are those of an ESXi host."


class TicketCertificate(ThumbprintMismatch):
    """The host's certificate is not the one that the ticket names."""

    code = "nfc.thumbprint"
    advice = "vCenter knows another certificate of this host: reconnect the host in vCenter, or find out who answers."


class TicketRefused(AuthenticationFailed):
    """The host refused the one-time ticket: used, expired or unknown."""

    code = "nfc.ticket"
    symptom = "ticket refused"
    advice = "Run the job again for a new ticket; check the clocks of vCenter and the host."


class HostBusy(ConnectError):
    """The host has no room for another NFC connection."""

    code = "nfc.limit"
    symptom = "too many connections"
    advice = "Lower the number of tasks at a time that read from this host."


class ServiceRefused(ConnectError):
    """The host's authentication daemon refused the NFC service."""

    code = "nfc.service"
    symptom = "service refused"
    advice = "Check the host's version and that its NFC service runs."


class OpenFailed(VadplabError):
    """The host refused to open a file."""

    code = "nfc.open"
    symptom = "open refused"
    advice = "Check that the snapshot still exists and that the ticket is for this VM."


class ReadFailed(VadplabError):
    """The host answered a read with an error."""

    code = "nfc.read"
    symptom = "read failed"
    advice = "Look at the host's log (hostd, vpxa) and its datastore."


class NfcProtocol(VadplabError):
    """The host sent something that the NFC protocol does not allow at that point."""

    code = "nfc.protocol"
    symptom = "protocol error"
    advice = "Check the host's version, and that no middlebox changes the stream."


class NfcSilent(ConnectTimedOut):
    """The host stopped answering on an open NFC connection."""

    code = "nfc.silent"
    advice = "A firewall cut the open connection without a reset, or the host hangs."


class NfcCut(ConnectReset):
    """The NFC connection was cut before the task was done."""

    code = "nfc.cut"
    advice = "A firewall or the host ended the open connection: look at the host's log and at idle time-outs."
