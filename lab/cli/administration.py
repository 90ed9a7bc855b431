# SPDX-License-Identifier: MIT
"""Verbs that the engine's own console knows in full (jobs made and changed, servers, limits, tokens): words are passed on.

`vadplab job create NAME --vm …` is typed on the lab's console host exactly as it stands here; the console's parser says
what is wrong with it. Only `--json` is this side's: the document instead of a table.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import typer
from rich.markup import escape

from engine.errors import InputError
from lab.cli import console
from lab.cli.options import root, running_lab
from lab.cli.output import Out

JOB = {
    "create": "Make a job: NAME --vm VM … [--mode --data-direction --guest-processing …].",
    "edit": "Change a job; options as for create.",
    "delete": "Delete a job that the console made.",
    "enable": "Let a job be started again.",
    "disable": "Keep a job from being started.",
    "schedule": "When a job starts by itself: NAME [--cron '…' [--zone Z] [--missed skip|run-once] | --off].",
}
INFRA = {
    "proxies": "list | add NAME | edit NAME | remove NAME [--address --port --tasks --modes].",
    "repositories": "list | add NAME | edit NAME | remove NAME [--address --port --tasks].",
    "limits": "Tasks at a time: list | set NAME N | clear NAME.",
}
REST = {"token": "Tokens of the REST service: create NAME [--hours --to FILE] | list | revoke NAME."}
TIMES = ("created", "expires")
_RAW = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


class ArgumentsInvalid(InputError):
    """The console does not know what these arguments mean."""

    code = "input.arguments"
    advice = "The command with --help shows its usage; nothing was changed."


def add(app: typer.Typer, family: str, verbs: dict[str, str]) -> None:
    """Adds pass-through commands to a group."""
    for verb, text in verbs.items():
        _add(app, family, verb, text)


def _add(app: typer.Typer, family: str, verb: str, text: str) -> None:
    @app.command(verb, help=text, context_settings=_RAW, add_help_option=False)
    def passed(context: typer.Context) -> None:
        argv = root(context).argv
        words = argv[argv.index(verb, argv.index(family)) :]
        as_json = "--json" in words
        _run(context, Out(as_json), family, [word for word in words if word != "--json"])


def _run(context: typer.Context, out: Out, family: str, words: list[str]) -> None:
    usage = _usage([family, *words])
    if usage is not None:
        if "-h" in words or "--help" in words:
            out.text(escape(usage.rstrip()))
            raise typer.Exit(0)
        complaint = usage.strip().splitlines()[-1].partition(" error: ")[2]
        raise ArgumentsInvalid(complaint, next=f"`vadplab {family} {words[0]} --help` shows the usage.")
    code, document = console.run(running_lab(context), [family, *words])
    console.finish(out, code, document, f"{family}-{words[0]}/1")
    for key, value in document.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            deeper = {name for item in value for name, inner in item.items() if isinstance(inner, dict)}
            columns = [name for name in value[0] if name not in deeper]  # what lies deeper is for --json
            columns = [name for name in columns if any(item.get(name) not in (None, "", []) for item in value)]
            out.table(columns, ([cell(name, item.get(name)) for name in columns] for item in value))
        elif isinstance(value, dict):
            out.table(("what", "value"), rows(value))
        elif key != "schema":
            out.text(f"{key}: {escape(cell(key, value) or 'none')}")


def _usage(words: list[str]) -> str | None:
    """What the console's parser says of words that it does not understand, or of a call for help; None when all is well."""
    from engine.console.__main__ import command_line

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            command_line("vadplab").parse_args(["--config", "x", *words])
    except SystemExit:
        return said.getvalue()
    return None


def rows(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A document as rows `(what, value)`; what lies deeper has a row of its own each, `outer.inner`."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", text) for inner, text in rows(value))
        else:
            yield key, cell(key, value)


def cell(key: str, value: Any) -> str:
    """A value as people read it; `key` tells the times (nanoseconds of UTC) from other numbers."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int() if key in TIMES:
            return datetime.fromtimestamp(value // 10**9, UTC).isoformat()
        case list():
            return ", ".join(cell(key, item) for item in value)
        case _:
            return str(value)
