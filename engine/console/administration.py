# SPDX-License-Identifier: MIT
"""Console verbs that change the configuration: their arguments, and the calls that they make.

job create NAME --vm VM… [settings]    job edit NAME [settings]    job delete|enable|disable NAME
job schedule NAME [--cron "30 22 * * 1-5" [--zone ZONE] [--missed skip|run-once] | --off]     without options: shows it
infra proxies|repositories list | add NAME [fields] | edit NAME [fields] | remove NAME
infra limits list | set NAME TASKS | clear NAME
rest token create NAME [--hours H] [--to FILE] | list | revoke NAME

Settings have options of their own; `--set FIELD=VALUE` (a YAML value, `rules.workers=4`) reaches every field of a job.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, get_args

import yaml

from engine.errors import InputError
from engine.model.infrastructure import Direction
from engine.modes.names import JobMode

Call = Callable[..., Awaitable[dict[str, Any]]]
ROLES = {"proxies": "proxy", "repositories": "repository"}
_OPTIONS: dict[str, str] = {
    "vcenter": "vcenter",
    "mode": "mode",
    "direction": "direction",
    "guest_processing": "guest.enabled",
    "pre_freeze": "guest.pre_freeze",
    "post_thaw": "guest.post_thaw",
    "throttle": "rules.throttle",
    "compression_level": "rules.compression_level",
    "snapshot_timeout": "snapshot_timeout",
    "failover": "failover",
    "cbt": "cbt",
    "keep_points": "retention.points",
    "keep_days": "retention.days",
}


class TokenFileExists(InputError):
    """The file for the new token exists, or cannot be made."""

    code = "token.file"
    advice = "Name a new file in a folder that exists; no token was made."


def add_job_verbs(job: Any) -> None:
    """Adds the verbs to the subparsers of `job`."""
    for action, text in (("create", "make a job"), ("edit", "change a job")):
        parser = job.add_parser(action, help=text)
        parser.add_argument("name")
        parser.add_argument("--vm", dest="vms", action="append", required=action == "create", help="a VM; repeatable")
        parser.add_argument("--vcenter", help="where its VMs are (default: the first, by name)")
        parser.add_argument("--mode", help=f"transport mode: {', '.join(get_args(JobMode))}")
        parser.add_argument("--pre-freeze", metavar="FILE", help="script on the backup server, run in the guest")
        parser.add_argument("--post-thaw", metavar="FILE", help="its counterpart")
        parser.add_argument("--data-direction", dest="direction", help=" or ".join(get_args(Direction)))
        parser.add_argument("--direction", dest="direction", help=argparse.SUPPRESS)  # its earlier name
        parser.add_argument("--guest-processing", action=argparse.BooleanOptionalAction)
        parser.add_argument("--failover", action=argparse.BooleanOptionalAction, help="SAN and HotAdd to Network mode")
        parser.add_argument("--cbt", action=argparse.BooleanOptionalAction, help="changed block tracking")
        parser.add_argument("--keep-points", type=int, help="retention: the newest points of each VM")
        parser.add_argument("--keep-days", type=int, help="retention: the points of so many days")
        parser.add_argument("--throttle", type=int, help="bytes a second")
        parser.add_argument("--compression-level", type=int, help="of zstd, 1 to 19")
        parser.add_argument("--snapshot-timeout", type=float, help="seconds")
        every = "any field that `job show` names: rules.workers=4; retention=null keeps every point again"
        parser.add_argument("--set", dest="sets", action="append", default=[], metavar="FIELD=VALUE", help=every)
    for action, text in (
        ("delete", "remove a job made in a console"),
        ("enable", "let a job start"),
        ("disable", "let a job start neither by hand nor by its schedule"),
    ):
        job.add_parser(action, help=text).add_argument("name")
    schedule = job.add_parser("schedule", help="when a job starts by itself; without options: shows it")
    schedule.add_argument("name")
    what = schedule.add_mutually_exclusive_group()
    what.add_argument("--cron", help="minute hour day-of-month month day-of-week")
    what.add_argument("--off", action="store_true", help="take the schedule away")
    schedule.add_argument("--zone", help="UTC (default) or a name such as Europe/Berlin")
    schedule.add_argument(
        "--missed", choices=("skip", "run-once"), help="what becomes of missed starts (default: skip)"
    )


def add_infra_verbs(infra: Any) -> None:
    """Adds the verbs to the subparsers of `infra`."""
    for family, role in ROLES.items():
        verbs = infra.add_parser(family, help=f"every {role}").add_subparsers(dest="verb", required=True)
        verbs.add_parser("list", help=f"every {role}")
        for verb in ("add", "edit", "remove"):
            parser = verbs.add_parser(verb, help=f"{verb} a {role}")
            parser.add_argument("name")
            if verb != "remove":
                parser.add_argument("--address", help="default: the name")
                parser.add_argument("--port", type=int)
                parser.add_argument("--tasks", dest="max_tasks", type=int, help="tasks at a time")
                parser.add_argument("--modes", help="transport modes, comma separated")
    verbs = infra.add_parser("limits", help="tasks at a time").add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="every server")
    limit = verbs.add_parser("set", help="limit a server")
    limit.add_argument("name")
    limit.add_argument("tasks", type=int)
    verbs.add_parser("clear", help="as configured").add_argument("name")


def add_rest_verbs(families: Any) -> None:
    """Adds the family `rest`."""
    rest = families.add_parser("rest", help="REST service").add_subparsers(dest="action", required=True)
    verbs = rest.add_parser("token", help="tokens").add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create", help="make a token; it is shown once")
    create.add_argument("name")
    create.add_argument("--hours", type=float, default=24.0, help="its life (default: 24)")
    create.add_argument("--to", type=Path, help="write it into this new file (mode 0600) and do not show it")
    verbs.add_parser("list", help="every token, without its secret")
    verbs.add_parser("revoke", help="end a token").add_argument("name")


async def perform(call: Call, given: argparse.Namespace) -> dict[str, Any] | None:
    """The result document of a verb of this module; None when the arguments are of another one."""
    match (given.family, getattr(given, "action", None), getattr(given, "verb", None)):
        case ("job", "create", _):
            settings = merge({"name": given.name}, changes(given))
            return _document("job-changed", await call("job.create", settings=settings))
        case ("job", "edit", _):
            return _document("job-changed", await call("job.edit", name=given.name, changes=changes(given)))
        case ("job", "delete", _):
            return _document("job-deleted", await call("job.delete", name=given.name))
        case ("job", "enable" | "disable" as action, _):
            return _document("job-changed", await call("job.enable", name=given.name, on=action == "enable"))
        case ("job", "schedule", _):
            return await _schedule(call, given)
        case ("infra", "proxies" | "repositories" as family, verb):
            return await _servers(call, given, ROLES[family], str(verb))
        case ("infra", "limits", "list"):
            return _document("servers", await call("infra.servers"))
        case ("infra", "limits", verb):
            tasks = given.tasks if verb == "set" else None
            return _document("server-changed", await call("infra.limit", name=given.name, tasks=tasks))
        case ("rest", "token", verb):
            return await _token(call, given, str(verb))
    return None


async def _schedule(call: Call, given: argparse.Namespace) -> dict[str, Any]:
    if given.cron is None and (given.zone or given.missed):
        raise InputError("--zone and --missed need --cron")
    if given.cron is None and not given.off:
        found = (await call("job.show", name=given.name))["job"]
        shown = {k: found[k] for k in ("name", "enabled", "schedule", "next_runs")}
        return _document("job-schedule", {"job": shown})
    schedule = None
    if given.cron is not None:
        chosen = {"cron": given.cron, "zone": given.zone, "missed": given.missed}
        schedule = {k: v for k, v in chosen.items() if v is not None}
    return _document("job-changed", await call("job.schedule", name=given.name, schedule=schedule))


async def _servers(call: Call, given: argparse.Namespace, role: str, verb: str) -> dict[str, Any]:
    if verb == "list":
        return _document("servers", await call("infra.servers", role=role))
    if verb == "remove":
        return _document("server-removed", await call("infra.remove", role=role, name=given.name))
    chosen = {"address": given.address, "port": given.port, "max_tasks": given.max_tasks}
    fields: dict[str, Any] = {k: v for k, v in chosen.items() if v is not None}
    if given.modes is not None:
        fields["modes"] = [mode.strip() for mode in given.modes.split(",")]
    if verb == "add":
        return _document("server-changed", await call("infra.add", role=role, fields={"name": given.name, **fields}))
    return _document("server-changed", await call("infra.edit", role=role, name=given.name, changes=fields))


async def _token(call: Call, given: argparse.Namespace, verb: str) -> dict[str, Any]:
    if verb == "list":
        return _document("tokens", await call("token.list"))
    if verb == "revoke":
        return _document("token-revoked", await call("token.revoke", name=given.name))
    if given.to is None:
        return _document("token", await call("token.issue", name=given.name, hours=given.hours))
    try:
        fd = os.open(given.to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise TokenFileExists(f"{given.to}: {exc.strerror}") from exc
    try:
        found = await call("token.issue", name=given.name, hours=given.hours)
        os.write(fd, str(found.pop("token")).encode() + b"\n")
    except BaseException:
        given.to.unlink()
        raise
    finally:
        os.close(fd)
    return _document("token", {**found, "file": str(given.to)})


def changes(given: argparse.Namespace) -> dict[str, Any]:
    """The fields of a job that the options name. Raises InputError for a `--set` that is none."""
    found: dict[str, Any] = {}
    if given.vms is not None:
        found["vms"] = given.vms
    for option, field in _OPTIONS.items():
        if (value := getattr(given, option)) is not None:
            merge(found, nested(field, value))
    for text in given.sets:
        field, sign, value = text.partition("=")
        if not sign or not all(field.split(".")):
            raise InputError(f"--set {text!r}: write FIELD=VALUE, for example rules.workers=4")
        try:
            merge(found, nested(field, yaml.safe_load(value)))
        except yaml.YAMLError as exc:
            raise InputError(f"--set {field}: the value is not YAML") from exc
    return found


def nested(field: str, value: Any) -> dict[str, Any]:
    """`a.b`, 1 → `{a: {b: 1}}`."""
    for part in reversed(field.split(".")):
        value = {part: value}
    return dict(value)


def merge(into: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Puts `other` into `into`, dictionaries key by key; gives `into`."""
    for key, value in other.items():
        here = into.get(key)
        into[key] = merge(here, value) if isinstance(here, dict) and isinstance(value, dict) else value
    return into


def _document(kind: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"schema": f"vadplab.{kind}/1", **found}
