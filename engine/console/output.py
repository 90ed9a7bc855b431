# SPDX-License-Identifier: MIT
"""What a console prints: `--events` one JSON object a line (progress, then the result), `--json` the result alone, else text."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any, Literal

Form = Literal["text", "json", "events"]
PROGRESS_SCHEMA = "vadplab.progress/1"


class Output:
    """Standard output in one of the three forms; errors for people go to standard error."""

    def __init__(self, form: Form) -> None:
        self.form = form

    def progress(self, item: dict[str, Any]) -> None:
        """Something that happened on the way."""
        if self.form == "events":
            self._line({"schema": PROGRESS_SCHEMA, **item})
        elif self.form == "text" and (text := describe(item)):
            self._write(text)

    def announce(self, document: dict[str, Any]) -> None:
        """A document that a command prints while it goes on: what the user needs meanwhile."""
        if self.form == "text":
            for disk in document.get("disks", []):
                self._write(f"{disk['label']}: {disk['uri']}")
            return
        self._line(document)

    def result(self, document: dict[str, Any]) -> None:
        """The command's one result document."""
        if self.form != "text":
            self._line(document)
            return
        error = document.get("error")
        if error:
            step = f"step {error['step']}: " if error.get("step") else ""
            sys.stderr.write(f"{step}{error['message']} [{error['code']}]\n  {error['next']}\n")
        for warning in document.get("warnings", []):
            sys.stderr.write(f"warning: {warning['message']} [{warning['code']}]\n")
        shown = {k: v for k, v in document.items() if k not in ("schema", "error", "warnings")}
        self._write(json.dumps(shown, indent=2, default=str))

    def _line(self, document: dict[str, Any]) -> None:
        self._write(json.dumps(document, separators=(",", ":"), default=str))

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def describe(item: dict[str, Any]) -> str:
    """One line for people; empty for what only machines need."""
    match item.get("kind"):
        case "step" if item.get("phase") != "begin":
            sign = {"end": "done", "failed": "FAILED", "skipped": "skipped"}[str(item["phase"])]
            about = " ".join(str(x) for x in (item.get("task"), item.get("text")) if x)
            return f"{item['step']:>3} {sign:7} {item['title']}{f' ({about})' if about else ''}"
        case "warning":
            return f"  ! {item['error']['message']}"
        case "note":
            return f"  - {item['text']}"
    return ""
