# SPDX-License-Identifier: MIT
"""What commands print: text for people, or one JSON document `{"schema": "vadplab.<command>/<version>", …}`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from engine.errors import VadplabError
from lab.errors import exit_status

ERROR_SCHEMA = "vadplab.error/1"
PIPE_WIDTH = 240


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
        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, overflow="fold", no_wrap=index == 0)
        for row in rows:
            table.add_row(*(escape("" if cell is None else str(cell)) for cell in row))
        self.console.print(table)

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
