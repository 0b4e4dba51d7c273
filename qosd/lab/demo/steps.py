"""Progress for a person: what is being done, and for how long already."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

LAST_WORDS = 25


class StepError(Exception):
    """A step failed; the message says which, and ends with the tool's last words."""


class Steps:
    """Runs steps one after another. On a terminal a line that counts seconds, in a log a line per change."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()

    @contextmanager
    def step(self, what: str, total: int | None = None) -> Iterator[Step]:
        columns = (SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}"))
        bar = (BarColumn(bar_width=24),) if total else ()
        began = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"[{began - self._began:5.0f} s] {what}", highlight=False, markup=False)
        with Progress(
            *columns, *bar, TimeElapsedColumn(), console=self.console, disable=not self.console.is_terminal
        ) as progress:
            task = progress.add_task(what, total=total or 1)
            step = Step(self, progress, task)
            yield step
            progress.update(task, description=what, completed=total or 1)
        if not self.console.is_terminal:
            took = time.monotonic() - began
            self.console.print(f"          took {took:.1f} s", highlight=False)

    def tell(self, what: str) -> None:
        """A line in a log; on a terminal the step's own line shows it."""
        if not self.console.is_terminal:
            seconds = time.monotonic() - self._began
            self.console.print(f"[{seconds:5.0f} s]   {what}", highlight=False, markup=False)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began


class Step:
    def __init__(self, steps: Steps, progress: Progress, task: int) -> None:
        self._steps = steps
        self._progress = progress
        self._task = task

    def now(self, what: str, done: int | None = None) -> None:
        """Say what is being done within the step."""
        self._steps.tell(what)
        # rich names its task ids with a NewType that it does not export.
        self._progress.update(self._task, description=what, completed=done)  # type: ignore[arg-type]


def run(argv: Sequence[str], log: Path) -> None:
    """A command with its output in a log file; a failure shows the end of it."""
    with log.open("ab") as output:
        done = subprocess.run(
            argv, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_WORDS:])
        raise StepError(f"{' '.join(argv)}: exit {done.returncode}; the end of {log}:\n{tail}")
