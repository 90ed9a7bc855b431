# SPDX-License-Identifier: MIT
"""What commands print: text for people, or one JSON document `{"schema": "vadplab.<command>/<version>", …}`."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from engine.errors import VadplabError
from lab.errors import exit_status

ERROR_SCHEMA = "vadplab.error/1"
PIPE_WIDTH = 240
SHORT = 3
"""A cell that needs no more than so many characters beyond its longest word is not broken while there is room."""


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]], width: int, right: Collection[str] = ()) -> Table:
    """A table without lines in `width` characters; cells are rich markup.

    Lines are broken between words, where most words are; inside a word only when even those do not fit, and never in the first
    column, which names the row.
    """
    lines = [list(row) for row in rows]
    plain = [
        [column, *(Text.from_markup(row[i]).plain for row in lines if i < len(row))] for i, column in enumerate(columns)
    ]
    widths, gap = _widths(plain, width)
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for column, size in zip(columns, widths, strict=True):
        table.add_column(column, width=size, overflow="fold", justify="right" if column in right else "left")
    for row in lines:
        table.add_row(*row)
    return table


def _widths(plain: list[list[str]], width: int) -> tuple[list[int], int]:
    """The width of each column, and the gap between two: what words need; short cells whole; then where most lines would break."""
    found = [max(cell_len(word) for cell in cells for word in cell.split() or [""]) for cells in plain]
    found[0] = max(map(cell_len, plain[0]))
    gap = 2 if sum(found) + 2 * (len(found) - 1) <= width else 1
    spare = width - sum(found) - gap * (len(found) - 1)
    while spare < 0 and (widest := max(range(1, len(found)), key=found.__getitem__, default=0)) and found[widest] > 1:
        found[widest] -= 1
        spare += 1
    whole = [max(map(cell_len, cells)) for cells in plain]
    for index, size in enumerate(whole):
        if 0 < size - found[index] <= min(spare, SHORT):
            spare -= size - found[index]
            found[index] = size
    while spare > 0 and found != whole:
        tightest = max(range(len(found)), key=lambda i: whole[i] / found[i])
        found[tightest] += 1
        spare -= 1
    return found, gap


def size_text(count: int | None) -> str:
    """Bytes for people: `512 B`, `1.4 MiB`."""
    if count is None:
        return "-"
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


class Out:
    """Prints for one command; `as_json` decides the form."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = PIPE_WIDTH  # a reader that is no terminal wants whole lines
        self.notices = Console(stderr=True, highlight=False, soft_wrap=True)

    def document(self, schema: str, document: dict[str, Any]) -> None:
        """Prints the document (only with `--json`); `schema` is for example `status/1`."""
        if self.as_json:
            sys.stdout.write(json.dumps({"schema": f"vadplab.{schema}", **document}, default=str) + "\n")
            sys.stdout.flush()

    def text(self, line: str) -> None:
        """Prints a line of rich markup (not with `--json`)."""
        if not self.as_json:
            self.console.print(line)

    def notice(self, line: str) -> None:
        """Progress and remarks: to standard error (not with `--json`)."""
        if not self.as_json:
            self.notices.print(line)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Prints a table (not with `--json`); cells are plain text. The first column names the row: it is never broken."""
        if self.as_json:
            return
        cells = [[escape("" if cell is None else str(cell)) for cell in row] for row in rows]
        self.console.print(grid(columns, cells, self.console.width))

    def error(self, error: VadplabError) -> int:
        """Prints an error and returns its exit code."""
        code = exit_status(error)
        fields = error.to_dict()
        if self.as_json:
            sys.stdout.write(json.dumps({"schema": ERROR_SCHEMA, **fields, "exit_code": code}) + "\n")
            sys.stdout.flush()
        else:
            step = f"step {fields['step']}: " if fields.get("step") else ""
            text = Text.assemble(("error", "bold red"), f" [{fields['code']}] {step}{fields['message']}\n")
            self.notices.print(text + Text.assemble(("next:", "dim"), f" {fields['next']}"))
        return code
