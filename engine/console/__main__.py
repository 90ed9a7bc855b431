# SPDX-License-Identifier: MIT
"""`python -m engine.console --config FILE [--json|--events] COMMAND…`: see `engine.console.commands`.

Exit codes: 0 done (warnings included), 1 failed or stopped, 2 bad input, 3 something is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from engine import config as configuration
from engine.console import administration, restores
from engine.console.commands import Console
from engine.console.output import Output
from engine.errors import VadplabError, catalogue

ERROR_SCHEMA = "vadplab.error/1"


def main(argv: list[str]) -> int:
    """Runs one command; prints its result and gives its exit code."""
    arguments = command_line().parse_args(restores.with_verb(argv))
    output = Output("events" if arguments.events else "json" if arguments.json else "text")
    try:
        config = configuration.load(arguments.config)
        document = asyncio.run(_perform(Console(config, output), restores.PointVerbs(config, output), arguments))
    except VadplabError as exc:
        output.result({"schema": ERROR_SCHEMA, "run": arguments.session, "result": "failed", "error": exc.to_dict()})
        return exc.exit_code
    output.result(document)
    return exit_code(document.get("error"))


def exit_code(error: dict[str, Any] | None) -> int:
    """The exit code of a result document's error: by its code in the catalogue, else 1."""
    if error is None:
        return 0
    known = {c.code: c.exit_code for c in catalogue()}
    return known.get(str(error.get("code")), 1)


async def _perform(console: Console, verbs: restores.PointVerbs, arguments: argparse.Namespace) -> dict[str, Any]:
    if (work := verbs.perform(arguments)) is not None:
        return await work
    return await administration.perform(console.call, arguments) or await _command(console, arguments)


def _command(console: Console, arguments: argparse.Namespace) -> Coroutine[Any, Any, dict[str, Any]]:
    match (arguments.family, getattr(arguments, "action", None)):
        case ("job", "run") if arguments.rest:
            return console.job_run_over_rest(
                arguments.name,
                token_file=arguments.token_file,
                options=_run_options(arguments),
                session=arguments.session,
            )
        case ("job", "run"):
            return console.job_run(arguments.name, options=_run_options(arguments), session=arguments.session)
        case ("job", "list"):
            return console.job_list()
        case ("job", "show"):
            return console.job_show(arguments.name)
        case ("job", "stop"):
            return console.job_stop(arguments.name)
        case ("infra", "show"):
            return console.infra_show()
        case ("infra", "rescan"):
            return console.infra_rescan(session=arguments.session)
        case ("points", _):
            return console.points_list()
        case _:
            return console.restore(
                arguments.point, disk=arguments.disk, to=arguments.to, vm=arguments.vm, session=arguments.session
            )


def _run_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What differs in this run, as the service takes it."""
    given = {key: getattr(arguments, key) for key in ("mode", "direction", "failover", "full")}
    return {key: value for key, value in given.items() if value is not None}


def command_line(prog: str = "engine.console") -> argparse.ArgumentParser:
    """The console's verbs and their options; `prog` is what usage calls it."""
    parser = argparse.ArgumentParser(prog=prog, description="Console of the backup engine")
    parser.add_argument("--config", type=Path, required=True)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the result document only")
    form.add_argument("--events", action="store_true", help="print progress as JSON lines, then the result document")
    parser.set_defaults(session=None)
    families = parser.add_subparsers(dest="family", required=True)
    job = families.add_parser("job", help="backup jobs").add_subparsers(dest="action", required=True)
    running = job.add_parser("run", help="run a job; Ctrl-C stops it cleanly")
    running.add_argument("name")
    running.add_argument("--mode")
    running.add_argument("--data-direction", dest="direction")
    running.add_argument(
        "--failover", action=argparse.BooleanOptionalAction, help="whether another transport mode may take over"
    )
    running.add_argument("--full", action="store_true", default=None, help="a new full restore point")
    running.add_argument("--session", help=argparse.SUPPRESS)
    running.add_argument("--rest", action="store_true", help="start it over REST (9419) instead of 9392")
    running.add_argument("--token-file", type=Path, help="file with the token for --rest")
    administration.add_job_verbs(job)
    job.add_parser("list", help="every job")
    for action, text in (("show", "one job"), ("stop", "stop a job: thaw, commit")):
        job.add_parser(action, help=text).add_argument("name")
    infra = families.add_parser("infra", help="infrastructure").add_subparsers(dest="action", required=True)
    administration.add_infra_verbs(infra)
    infra.add_parser("show", help="what is known")
    infra.add_parser("rescan", help="read it anew").add_argument("--session", help=argparse.SUPPRESS)
    administration.add_rest_verbs(families)
    restores.add_verbs(families)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
