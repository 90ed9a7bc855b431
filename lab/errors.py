# SPDX-License-Identifier: MIT
"""Errors of the laboratory, beside the catalogue of `engine.errors`.

InputError (2)      TopologyInvalid, LabRunning
MissingError (3)    LabNotRunning, LabGone, LabEmpty, LabUnknown, HostUnknown, PowerMissing, ComponentMissing
VadplabError (1)    LabFailed, LabStuck, ProcessFailed, ControlFailed, RemoteLabError (keeps the original's)
"""

from __future__ import annotations

from typing import Any

from engine.errors import InputError, MissingError, RemoteError, VadplabError
from firewall_rules.errors import RuleError


class TopologyInvalid(InputError):
    """The topology file cannot be used; the message holds one line per problem, each with file and line."""

    code = "topology.invalid"
    advice = "Correct the lines named above; `vadplab topology schema` prints the format."


class LabRunning(InputError):
    """A lab of this name is up already."""

    code = "lab.running"
    symptom = "already running"
    advice = "Use it, take it down with `vadplab down`, or give the new one a name with `vadplab --lab NAME up`."


class FolderUnusable(InputError):
    """The folder of the lab's state can not be made or written."""

    code = "lab.folder"
    advice = "Set VADPLAB_HOME to a folder that this user can write."


class LabNotRunning(MissingError):
    """The command needs a running lab and there is none."""

    code = "lab.not-running"
    advice = "Bring one up with `vadplab up`."


class LabGone(LabNotRunning):
    """The lab ended while the command waited for it."""

    code = "lab.gone"
    symptom = "gone"
    advice = "Bring it up again with `vadplab up`. The evidence of its runs is kept: `vadplab runs`."


class LabEmpty(MissingError):
    """The command needs daemons, and the lab was brought up without."""

    code = "lab.empty"
    advice = "Take it down with `vadplab down` and bring it up without --empty."


class LabUnknown(MissingError):
    """There is no state folder of that name."""

    code = "lab.unknown"
    advice = "`vadplab labs` lists the labs that exist."


class LabAmbiguous(InputError):
    """Several labs are there and none was named."""

    code = "lab.ambiguous"
    advice = "Name one: `vadplab --lab NAME …`; `vadplab labs` lists them."


class HostUnknown(InputError):
    """The topology has no host of that name."""

    code = "lab.host-unknown"
    advice = "`vadplab status` lists the hosts of the lab."


class PowerMissing(MissingError):
    """The kernel or this user's rights do not allow what a lab is made of."""

    code = "lab.power-missing"
    advice = "Run `vadplab doctor`: it names each missing power and its substitute."


class ComponentMissing(MissingError):
    """A process of the lab says that something it needs is not installed."""

    code = "lab.component-missing"
    advice = "Run `make setup`: it installs what is missing; `vadplab doctor` lists it."


class VcsimMissing(MissingError):
    """The stock vcsim can not be had."""

    code = "vcsim.missing"
    advice = "Run `make setup`, or name a binary: `vadplab up --vcsim FILE`."


class LabFailed(VadplabError):
    """The lab could not be brought up; what had been made is gone again."""

    code = "lab.failed"
    advice = "Read the supervisor's log that the message names, then run `vadplab doctor`."


class LabStuck(VadplabError):
    """The lab did not end in time."""

    code = "lab.stuck"
    advice = "End it with `vadplab down --force`."


class ProcessFailed(VadplabError):
    """A process of the lab did not become ready, or ended."""

    code = "lab.process-failed"
    advice = "Read its log: `vadplab logs HOST PROCESS`."


class ControlFailed(VadplabError):
    """The supervisor refused a request or stopped answering."""

    code = "lab.control"
    advice = "See `vadplab status` and the supervisor's log in the lab's folder."


class ConsoleFailed(VadplabError):
    """The engine's console could not be run, or said something that can not be read."""

    code = "lab.console"
    advice = "Read its log: `vadplab logs console console`."


class RemoteLabError(RemoteError):
    """An error that the supervisor reported; keeps the original's code, exit code and fields."""

    code = "lab.remote"
    advice = VadplabError.advice

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.exit_status = int(fields.get("exit_code", 1))

    def to_dict(self) -> dict[str, Any]:
        """The original's fields."""
        own = super().to_dict()
        return {key: self.fields.get(key, value) for key, value in own.items()}

    def __str__(self) -> str:
        return f"{self.message} [{self.fields.get('code', self.code)}]"


def of_rules(error: RuleError) -> RemoteLabError:
    """An error of `firewall_rules` (bad input) as one of the catalogue, with its own code."""
    fields = {
        "code": error.code,
        "symptom": "bad input",
        "message": str(error),
        "next": InputError.advice,
        "exit_code": 2,
    }
    return RemoteLabError(fields)


def exit_status(error: VadplabError) -> int:
    """The exit code of the table in `engine.errors` for this error."""
    return error.exit_status if isinstance(error, RemoteLabError) else error.exit_code
