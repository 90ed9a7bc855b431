# SPDX-License-Identifier: MIT
"""What a run can fail with by itself, or warn of; errors of what it talks to keep their own codes."""

from __future__ import annotations

import sys
import traceback

from engine.errors import VadplabError


class VmMissing(VadplabError):
    """A VM of the job is not in the inventory."""

    code = "job.vm-missing"
    symptom = "not found"
    advice = "Correct the VM's name in the job, or run `infra rescan` when it is new."


class DiskAppeared(VadplabError):
    """vCenter shows a disk that the configuration database does not know: it is backed up in the same run."""

    code = "job.disk-appeared"
    symptom = "new disk"
    advice = "Run `infra rescan` so that the next run knows it from the start."


class DiskGone(VadplabError):
    """The configuration database knows a disk that vCenter no longer shows."""

    code = "job.disk-gone"
    symptom = "disk is gone"
    advice = "Run `infra rescan`; if the disk should be there, look at the VM in vCenter."


class ModeFailover(VadplabError):
    """A disk was read in another transport mode than the best that its proxy is set up for."""

    code = "job.mode-failover"
    symptom = "failover"
    advice = "Put the better mode in order; until then the disk is read more slowly. See the reason."


class ModeNotPossible(VadplabError):
    """The proxy of a task cannot use the transport mode that the job asks for."""

    code = "job.mode-not-possible"
    symptom = "mode not possible"
    advice = "Choose another mode, or a proxy that can use this one."


class RetentionFailed(VadplabError):
    """Old restore points could not be merged or removed after the run."""

    code = "job.retention"
    symptom = "retention failed"
    advice = "All restore points stay as they were; the next run tries again. See the reason."


class NoSpace(VadplabError):
    """The repository has not enough space for a new restore point."""

    code = "job.no-space"
    symptom = "no space left"
    advice = "Free space on the repository, or let retention keep fewer restore points; nothing was begun."


class ProxyLost(VadplabError):
    """A proxy was lost, and another one has taken over its task."""

    code = "job.proxy-lost"
    symptom = "proxy lost"
    advice = "Look at the proxy and its log; the data of its attempt was thrown away."


def as_error(exc: Exception) -> VadplabError:
    """An exception as an error of the catalogue; what is not one already is a fault of this program, told with its trace."""
    if isinstance(exc, VadplabError):
        return exc
    traceback.print_exception(exc, file=sys.stderr)
    return VadplabError(f"{type(exc).__name__} in the Backup Manager")
