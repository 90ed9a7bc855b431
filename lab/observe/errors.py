# SPDX-License-Identifier: MIT
"""Errors of observing: a run can not be recorded, or what was recorded can not be read.

MissingError (3)    NoSpace, ToolMissing, CaptureFailed, EvidenceMissing, RunUnknown
InputError (2)      RunBusy
"""

from __future__ import annotations

from engine.errors import InputError, MissingError


class NoSpace(MissingError):
    """The file system that holds the runs has too little room for another one."""

    code = "run.no-space"
    symptom = "no space"
    advice = "Free space there, or remove old run folders."


class ToolMissing(MissingError):
    """A program that the recording needs is not installed."""

    code = "run.tool-missing"
    advice = "Install it with `apt-get install wireshark-common tshark`."


class CaptureFailed(MissingError):
    """The capture did not start, or ended before it was told to."""

    code = "run.capture"
    advice = "The message holds dumpcap's own words; `vadplab doctor` checks the rights that a capture needs."


class EvidenceMissing(MissingError):
    """A file of the run folder that the verdict needs is not there or can not be read."""

    code = "run.evidence-missing"
    advice = "Run the job again; a run whose recording was cut short can not be judged."


class RunUnknown(MissingError):
    """There is no run folder of that name."""

    code = "run.unknown"
    advice = "`vadplab runs` lists the runs of this lab."


class RunBusy(InputError):
    """A run is being recorded already; evidence of two runs would be mixed."""

    code = "run.busy"
    symptom = "busy"
    advice = "Wait until the current run has ended: a second run of a job is queued."
