# SPDX-License-Identifier: MIT
"""Shows what a running console command streams: steps as they end, tasks as bars."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from lab.cli.output import Out

_GLYPH = {"end": "[green]✓[/]", "failed": "[red]✗[/]", "skipped": "[dim]–[/]"}


class Progressing:
    """Use it as `with Progressing(out) as show: …(on_line=show)`; silent with `--json`."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=out.notices,
            transient=True,
            disable=out.as_json,
        )

    def __enter__(self) -> Progressing:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, line: dict[str, Any]) -> None:
        """One streamed document."""
        match line.get("kind"):
            case "step" if line.get("phase") in _GLYPH:
                details = "".join(f" [dim]· {escape(line[key])}[/]" for key in ("task", "text") if line.get(key))
                self._out.notice(f"{_GLYPH[line['phase']]} {line['step']:>3} {line.get('title', '')}{details}")
            case "task":
                self._bar(str(line["task"]), int(line["read"]), int(line["total"]))
            case "note":
                self._out.notice(f"    [dim]{escape(line.get('text', ''))}[/]")
            case "warning":
                error = line.get("error") or {}
                said = escape(f"{line.get('vm', '')}: {error.get('message')} [{error.get('code')}]")
                self._out.notice(f"[yellow]![/]     {said}")
            case "restore":
                self._bar("restore", int(line["received"]), int(line["total"]))

    def _bar(self, name: str, done: int, total: int) -> None:
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._bars[name], completed=done, total=total)
