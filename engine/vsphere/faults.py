# SPDX-License-Identifier: MIT
"""What vCenter refuses or does not do in time."""

from __future__ import annotations

from engine.errors import VadplabError


class VSphereFault(VadplabError):
    """vCenter answered a call with a fault."""

    code = "vsphere.fault"
    symptom = "refused by vSphere"
    advice = "See the fault's name and the vCenter's log."

    fault: str = ""


class ObjectNotFound(VSphereFault):
    """An object that the engine needs is not (or no longer) in the vCenter's inventory."""

    code = "vsphere.not-found"
    symptom = "not found"
    advice = "Run `infra rescan`; check the name of the VM in the job."


class TaskTimedOut(VSphereFault):
    """A vSphere task did not end before its deadline."""

    code = "vsphere.task-timed-out"
    symptom = "timed out"
    advice = "Look at the task in the vCenter; it may still end."
