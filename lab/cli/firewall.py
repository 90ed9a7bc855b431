# SPDX-License-Identifier: MIT
"""`vadplab firewall`: the live firewall of a lab. A target is a matrix row (`H5`), or FROM TO PORT (hosts or roles)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from lab.cli.options import Json, running_lab
from lab.cli.output import Out
from lab.realise.control import call
from lab.realise.nft_errors import RequestInvalid

app = typer.Typer(no_args_is_help=True)

Words = Annotated[
    list[str],
    typer.Argument(metavar="ROW | FROM TO PORT", help="H5, or proxy-1 esxi-1 902 (also 2500-3300, 53/udp, any)."),
]


class How(StrEnum):
    """What a blocked client sees: a time-out, a refusal, or an ICMP prohibition."""

    DROP = "drop"
    RESET = "reset"
    ICMP = "icmp"


def target(words: list[str]) -> dict[str, str]:
    """A request's parameters for ROW, or FROM TO PORT.

    Raises:
        RequestInvalid: neither one word nor three.
    """
    if len(words) == 1:
        return {"row": words[0]}
    if len(words) == 3:
        return dict(zip(("from", "to", "port"), words, strict=True))
    raise RequestInvalid(f"{' '.join(words)!r} is neither ROW nor FROM TO PORT")


@app.command()
def show(context: typer.Context, json: Json = False) -> None:
    """Show every rule in the order in which rules decide, with what it has counted."""
    out = Out(json)
    document = _ask(context, "show")
    out.document("firewall.show/1", document)
    out.text(f"policy [bold]{document['policy']}[/bold], profile {document['profile']}, default {document['default']}")
    out.table(["rule", "from", "to", "port", "does", "packets", "what for"], map(_line, document["rules"]))


@app.command()
def block(
    context: typer.Context,
    words: Words,
    how: Annotated[How, typer.Option("--with", help="What a blocked client sees.")] = How.DROP,
    new_only: Annotated[bool, typer.Option("--new-only", help="Leave open connections alone.")] = False,
    json: Json = False,
) -> None:
    """Block a row or a pair until `allow` or `reset`; open connections are cut too."""
    out = Out(json)
    document = _ask(context, "block", **target(words), **{"with": how.value, "new_only": new_only})
    out.document("firewall.block/1", document)
    cut = document["cut"]
    also = f"; cut {cut} open connection{'s' if cut != 1 else ''}" if cut else ""
    out.text(f"{_overlay(document['overlay'])}{also}")


@app.command()
def allow(context: typer.Context, words: Words, json: Json = False) -> None:
    """Take blocks of a row or a pair away, and allow it live if the policy does not."""
    out = Out(json)
    document = _ask(context, "allow", **target(words))
    out.document("firewall.allow/1", document)
    for gone in document["removed"]:
        out.text(f"removed: {_overlay(gone)}")
    if document["overlay"]:
        out.text(_overlay(document["overlay"]))
    else:
        out.text("the policy allows it")


@app.command()
def reset(context: typer.Context, json: Json = False) -> None:
    """Take every live change away: only the policy decides again."""
    out = Out(json)
    document = _ask(context, "reset")
    out.document("firewall.reset/1", document)
    for gone in document["removed"]:
        out.text(f"removed: {_overlay(gone)}")
    if not document["removed"]:
        out.text("nothing was blocked or allowed live")


def _ask(context: typer.Context, verb: str, **params: Any) -> dict[str, Any]:
    answer: dict[str, Any] = call(running_lab(context).control_socket, f"firewall.{verb}", **params)
    return answer


def _line(rule: dict[str, Any]) -> list[object]:
    does = rule["action"] + (" (new only)" if rule["new_only"] else "")
    name = rule["rule"] if rule["row"] in ("", None, rule["rule"]) else f"{rule['rule']} ({rule['row']})"
    port = "any" if rule["protocol"] == "any" else rule["ports"]
    port += "" if rule["protocol"] in ("any", "tcp") else f"/{rule['protocol']}"
    ends = [", ".join(rule["from"]), ", ".join(rule["to"])]
    note = "live" if rule["kind"] == "overlay" else rule["comment"]
    return [name, *ends, port, does, rule["packets"], note]


def _overlay(overlay: dict[str, Any]) -> str:
    ports = ", ".join(map(str, overlay["ports"]))
    what = f"{', '.join(overlay['from'])} to {', '.join(overlay['to'])} {overlay['protocol']}/{ports}"
    row = f"row {overlay['row']}: " if overlay["row"] else ""
    new = ", new connections only" if overlay["new_only"] else ""
    return f"{overlay['id']}: {row}{what}, {overlay['action']}{new}"
