# SPDX-License-Identifier: MIT
"""Errors of the data link and of the mover's own conversation."""

from __future__ import annotations

from engine.errors import AuthenticationFailed, ConnectReset, ConnectTimedOut, InputError, VadplabError


class DataLinkSilent(ConnectTimedOut):
    """The other Data Mover sent nothing for too long."""

    code = "data.silent"
    advice = "A firewall cut the open data connection, or the other machine hangs: look at its log."


class DataLinkCut(ConnectReset):
    """The data connection ended before the transfer was complete."""

    code = "data.cut"
    advice = "The other Data Mover ended, or a firewall cut the data connection: look at the other machine's log."


class WrongToken(AuthenticationFailed):
    """A connection to a Data Mover did not bring the token that was issued for it."""

    code = "data.token"
    symptom = "token refused"
    advice = "Tokens are valid for one connection of one task: run the job again."


class DataProtocol(VadplabError):
    """A message on the data connection is not what this point of the transfer allows."""

    code = "data.protocol"
    symptom = "protocol error"
    advice = "Check that both machines run the same version."


class NoParent(VadplabError):
    """The source asked for the digests of a restore point below, but the target has none."""

    code = "data.no-parent"
    symptom = "no parent"
    advice = "Open the target with the restore point below, or run a full backup."


class NoFreePort(VadplabError):
    """All ports of the Data Movers' range are in use."""

    code = "mover.ports"
    symptom = "no free port"
    advice = "Widen mover_ports (and the firewall rule), or lower the task limit of this server."


class NotReady(InputError):
    """A call came before the ones that must precede it."""

    code = "mover.order"
    exit_code = 1
    symptom = "wrong order"
    advice = "Report this with the logs: the Backup Manager called out of order."


class Stopped(VadplabError):
    """The task was stopped before it was done."""

    code = "mover.stopped"
    symptom = "stopped"
    advice = "Run the job again."
