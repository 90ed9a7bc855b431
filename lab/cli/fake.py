# SPDX-License-Identifier: MIT
"""`vadplab fake`: one fake alone, through the same entry that the lab uses. Its arguments are its own (`--help` shows them)."""

from __future__ import annotations

import importlib

import typer

from lab.cli.options import root

app = typer.Typer(no_args_is_help=True)

FAKES = {
    "vcenter": "fakes.vcenter",
    "esxi": "fakes.esxi",
    "disk": "fakes.storage",
    "san": "fakes.san",
    "bus": "fakes.scsi_bus",
}
_RAW = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _run(context: typer.Context, kind: str) -> None:
    argv = root(context).argv
    rest = argv[argv.index(kind, argv.index("fake")) + 1 :]
    module = importlib.import_module(FAKES[kind])
    if not hasattr(module, "main"):
        module = importlib.import_module(f"{FAKES[kind]}.__main__")
    raise typer.Exit(int(module.main(rest) or 0))


@app.command(context_settings=_RAW, add_help_option=False)
def vcenter(context: typer.Context) -> None:
    """A vCenter: stock vcsim behind the gateway. Prints its URL first; ends on SIGTERM."""
    _run(context, "vcenter")


@app.command(context_settings=_RAW, add_help_option=False)
def esxi(context: typer.Context) -> None:
    """An ESXi host: 443 and 902."""
    _run(context, "esxi")


@app.command(context_settings=_RAW, add_help_option=False)
def disk(context: typer.Context) -> None:
    """A datastore's storage service: LUN, snapshot chains, NBD exports."""
    _run(context, "disk")


@app.command(context_settings=_RAW, add_help_option=False)
def san(context: typer.Context) -> None:
    """A storage array: the LUNs of datastores over iSCSI."""
    _run(context, "san")


@app.command(context_settings=_RAW, add_help_option=False)
def bus(context: typer.Context) -> None:
    """The virtual SCSI bus of a proxy that is a VM: attached disks appear as devices."""
    _run(context, "bus")
