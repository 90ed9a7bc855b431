# SPDX-License-Identifier: MIT
"""The command line's frame: which command is meant, its module, errors and exit codes (table in `engine.errors`)."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from engine.errors import InputError, MissingError, VadplabError
from firewall_rules.errors import RuleError
from lab.cli.options import Root
from lab.cli.output import Out
from lab.cli.registry import BY_NAME, COMMANDS, Entry
from lab.errors import of_rules


class CommandUnusable(MissingError):
    """A command's module can not be imported."""

    code = "missing.command"
    advice = "Run `make setup`: a component that this command needs is not installed."


def version() -> str:
    """The installed version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("vadplab")
    except PackageNotFoundError:
        return "0 (not installed)"


def rearranged(argv: list[str]) -> list[str]:
    """The same words with a `--json` that stands before the command where commands read it: behind their own words."""
    end = argv.index("--") if "--" in argv else len(argv)
    name = chosen(argv[:end])
    before = argv.index(name) if name is not None else end
    if name is None or "--json" not in argv[:before]:
        return argv
    words = [word for word in argv[:before] if word != "--json"]
    return [*words, *argv[before:end], "--json", *argv[end:]]


def chosen(argv: list[str]) -> str | None:
    """The command that stands on the command line, or None."""
    words = iter(argv)
    for word in words:
        if word == "--lab":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


def build(argv: list[str]) -> typer.Typer:
    """The application for this command line: the chosen command's module, and one line of help for each other command."""
    app = typer.Typer(name="vadplab", no_args_is_help=True, add_completion=False, rich_markup_mode="rich")

    @app.callback()
    def before(
        context: typer.Context,
        lab: Annotated[
            str | None, typer.Option("--lab", metavar="NAME", help="The lab to use; one lab needs no name.")
        ] = None,
        show_version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
    ) -> None:
        """An emulated lab for backup of virtual machines: a real engine, faithful fakes, a firewall, and proof of every
        connection. Every command takes --json."""
        if show_version:
            typer.echo(f"vadplab {version()}")
            raise typer.Exit
        context.obj = Root(lab=lab, argv=argv)

    name = chosen(argv)
    for entry in COMMANDS:
        if entry.name == name:
            _add(app, entry)
        else:
            app.command(entry.name, help=entry.help, rich_help_panel=entry.panel)(_not_this_time)
    return app


def _add(app: typer.Typer, entry: Entry) -> None:
    try:
        module = importlib.import_module(entry.module)
    except ModuleNotFoundError as exc:
        raise CommandUnusable(f"the command {entry.name} can not be used: {exc}") from exc
    sub: typer.Typer = module.app
    if len(sub.registered_commands) == 1 and not sub.registered_groups and not sub.registered_callback:
        command = sub.registered_commands[0]
        assert command.callback is not None
        app.command(
            entry.name, help=command.help, context_settings=command.context_settings, rich_help_panel=entry.panel
        )(command.callback)
    else:
        app.add_typer(sub, name=entry.name, help=entry.help, rich_help_panel=entry.panel)


def _not_this_time() -> None:
    """Stands in the help page for a command that was not asked for."""
    raise AssertionError("a command ran that was not on the command line")


def run(argv: list[str]) -> int:
    """Runs a command line and returns its exit code."""
    argv = rearranged(argv)
    our_words = argv[: argv.index("--")] if "--" in argv else argv
    out = Out("--json" in our_words)
    try:
        if our_words[:1] == ["--version"] or set(our_words) == {"--version", "--json"}:
            out.document("version/1", {"version": version()})
            out.text(f"vadplab {version()}")
            return 0
        name = chosen(argv)
        if name is not None and name not in BY_NAME:
            raise InputError(f"there is no command {name}", next="`vadplab --help` lists the commands.")
        command = typer.main.get_command(build(argv))
        with command.make_context("vadplab", argv) as context:  # typer's own main makes an exit code of Ctrl-C
            result = command.invoke(context)
        return result if isinstance(result, int) else 0
    except typer.Exit as exc:
        return exc.exit_code
    except VadplabError as exc:
        return out.error(exc)
    except RuleError as exc:
        return out.error(of_rules(exc))
    except typer.TyperException as exc:
        # A group without a verb has printed its help page already, and says nothing more.
        said = exc.format_message().replace(": Value error, ", ": ")
        at = getattr(exc, "ctx", None)
        path = at.command_path if at else " ".join(["vadplab", *filter(None, [chosen(argv)])])
        message = said or f"{path} needs one of the commands above"
        return out.error(InputError(message, next=f"`{path} --help` shows the usage."))
    except (KeyboardInterrupt, typer.Abort):
        return interrupted(argv)
    except BrokenPipeError:
        return 1


def interrupted(argv: list[str]) -> int:
    """Says that Ctrl-C ended the command; commands that have something to take back do so before, and say it themselves."""
    from engine.console.commands import Interrupted

    return Out("--json" in argv).error(Interrupted("interrupted"))
