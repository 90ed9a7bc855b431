# SPDX-License-Identifier: MIT
"""Errors of guest processing. None of them fails the backup of a VM: the point is then crash-consistent, with a warning."""

from __future__ import annotations

from engine.errors import AuthenticationFailed, TlsFailed, VadplabError


class GuestError(VadplabError):
    """Something failed inside a guest."""

    code = "guest.failed"
    advice = "Look at the guest's log; the restore point is crash-consistent."


class GuestAddressUnknown(GuestError):
    """VMware Tools report no address for the guest, so it cannot be reached over the network."""

    code = "guest.no-address"
    symptom = "no address"
    advice = "Check that VMware Tools run in the guest and that it has an IPv4 address."


class GuestCredentialsMissing(GuestError):
    """The configuration names no account for this guest."""

    code = "guest.no-credentials"
    symptom = "no credentials"
    advice = "Add the VM under `guests` in the infrastructure file, and run `infra rescan`."


class GuestNotSupported(GuestError):
    """The guest's operating system is not one whose scripts can be run over the network."""

    code = "guest.not-supported"
    symptom = "not supported"
    advice = "Turn guest processing off for this VM, or use VMware Tools quiescence."


class ScriptFailed(GuestError):
    """A script ended with an exit code other than 0, or wrote to standard error (flow reference section 5)."""

    code = "guest.script-failed"
    symptom = "script failed"
    advice = "Run the script in the guest by hand; it must end with 0 and write nothing to standard error."


class ScriptTimedOut(GuestError):
    """A script did not end before its deadline."""

    code = "guest.script-timed-out"
    symptom = "script timed out"
    advice = "Make the script faster, or raise `guest.timeout` of the job."


class UploadFailed(GuestError):
    """The scripts could not be copied to the guest's /run."""

    code = "guest.upload-failed"
    symptom = "upload failed"
    advice = "The account must be able to write to /run in the guest (root)."


class HostKeyMismatch(TlsFailed):
    """The guest's SSH host key is not the one that is stored."""

    code = "guest.host-key"
    symptom = "host key mismatch"
    advice = "If the guest was reinstalled, correct `host_key` in the infrastructure file; else find out who answers."


class SshFailed(GuestError):
    """The SSH exchange with the guest failed."""

    code = "guest.ssh-failed"
    symptom = "SSH failed"
    advice = "Look at the guest's SSH server log."


class GuestLoginRefused(AuthenticationFailed):
    """The guest refused the account."""

    code = "guest.login-refused"
    advice = "Correct the credentials stored for this guest."
