# SPDX-License-Identifier: MIT
"""Errors of the firewall.

InputError (2)      PolicyInvalid, TargetUnknown, RequestInvalid
MissingError (3)    FirewallMissing
VadplabError (1)    FirewallFailed
"""

from __future__ import annotations

from engine.errors import InputError, MissingError, VadplabError


class PolicyInvalid(InputError):
    """A policy cannot be used: broken, or it names roles or rows that do not exist."""

    code = "firewall.policy"
    advice = "Correct the policy file; the rules that are in force were not changed."


class TargetUnknown(InputError):
    """A row, host, role or port that does not exist here."""

    code = "firewall.target"
    advice = "`vadplab firewall show` lists the rows, `vadplab status` the hosts."


class RequestInvalid(InputError):
    """A firewall request that cannot be understood."""

    code = "firewall.request"
    advice = "Give a matrix row (H5), or FROM TO PORT (proxy-1 esxi-1 902); `--with` is drop, reset or icmp."


class FirewallMissing(MissingError):
    """nftables is not there, or no policy has been applied yet."""

    code = "firewall.missing"
    advice = "Install nftables with `apt-get install nftables`; `vadplab up` applies a policy."


class FirewallFailed(VadplabError):
    """The kernel refused the rules; those that were in force stay."""

    code = "firewall.failed"
    advice = "The message holds nft's own words; `vadplab doctor` checks what the kernel offers."
