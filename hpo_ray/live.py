"""The live view: a study in a terminal, drawn anew a few times a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.status import Status
from rich.table import Table
from rich.text import Text

from hpo_ray.commands import short
from hpo_ray.results import StudyState
from hpo_ray.view import (
    View,
    bracket_count,
    clean,
    elapsed_text,
    estimate_for,
    failure,
    headline,
    incumbent,
    resource_text,
    rung_table,
    trial_text,
    trials_text,
    until,
)

if TYPE_CHECKING:
    from hpo_ray.study import Draft

DRAW_EVERY_S = 0.25
PAUSE_PER_DRAWING = 20
"""After a drawing that took long, of a large study or in a slow terminal, the next is so many times as far away."""
_GAP = "  "


class LiveView(View):
    """A table in the terminal that is drawn anew at most four times a second.

    No line is longer than the terminal is wide, and all of them together are no higher than it.

    Args:
        console: the terminal; by default the one on standard output. It honours `NO_COLOR`.
        now: seconds that pass on the wall, from any start.
        date: the time of day, in seconds since the epoch.
    """

    silent = False

    def __init__(
        self,
        console: Console | None = None,
        now: Callable[[], float] = time.monotonic,
        date: Callable[[], float] = time.time,
    ) -> None:
        self._console = console or Console()
        self._live: Live | None = None
        self._status: Status | None = None
        self._now, self._date = now, date
        self._next_s = -math.inf

    def prepare(self, draft: Draft) -> None:
        """Says what will run while Ray and torch are imported and started, which takes some seconds."""
        executor = str(draft.config["executor"]["_target_"]).rpartition(".")[2]
        self._status = self._console.status(_line(f"{headline(draft)}; starting {executor}"))
        self._status.start()

    def start(self, draft: Draft, folder: Path) -> None:
        """Starts to draw."""
        self.stop()
        self._draft, self._folder, self._estimate = draft, folder, estimate_for(draft)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def update(self, state: StudyState, elapsed_s: float) -> None:
        """Draws if the last drawing is old enough."""
        if self._live is None:
            return
        now = self._now()
        at_s = now if self._draft.virtual_workers else elapsed_s
        self._estimate.observe(state, at_s, elapsed_s)
        if now >= self._next_s:
            left_s = self._estimate.left_s(state, at_s, elapsed_s)
            self._live.update(self._render(state, elapsed_s, left_s), refresh=True)
            self._next_s = now + max(DRAW_EVERY_S, PAUSE_PER_DRAWING * (self._now() - now))

    def stop(self) -> None:
        """Takes the table away; what is printed next stands in its place."""
        for shown in (self._status, self._live):
            if shown is not None:
                shown.stop()
        self._status = self._live = None

    def _render(self, state: StudyState, elapsed_s: float, left_s: float | None) -> Group:
        draft, size = self._draft, self._console.size
        parts: list[RenderableType] = [_line(headline(draft), "bold"), _line(str(short(self._folder)), "dim")]
        if (share := _share(state, draft, elapsed_s)) is not None:
            bar = Table.grid(expand=True, padding=(0, 1, 0, 0))
            bar.add_column(ratio=1)
            bar.add_column(width=4, justify="right")
            bar.add_row(ProgressBar(total=1.0, completed=share), f"{int(100 * share)}%")
            parts.append(bar)
        parts.append(_line(f"{elapsed_text(elapsed_s, draft)}  {trials_text(state)}"))
        left = until(left_s, self._date())
        parts.append(_line(resource_text(state, draft) + (f"; {left}" if left else "")))
        if state.best is not None:
            best = _line("best ", "green")
            parts.append(best.append(clean(incumbent(state.best, draft)), style="bold"))
            parts.append(_line("  " + trial_text(state.best)))
        if state.last_failure is not None:
            parts.append(_line(failure(state), "red"))
        room = size.height - len(parts) - 2  # the line above the table, and one below for the cursor
        return Group(*parts, *_rungs(state, draft, size.width, room))


def _share(state: StudyState, draft: Draft, elapsed_s: float) -> float | None:
    """How much of the study is done, from 0 to 1: of the resource, or of the time where only that ends it."""
    if total := draft.plan.total_resource:
        return min(1.0, (state.trained - state.again) / total)
    if draft.budget.time_s:
        return min(1.0, elapsed_s / draft.budget.time_s)
    return None


def _line(text: str, style: str = "") -> Text:
    """A text that takes one line, and ends in an ellipsis where the terminal does."""
    return Text(clean(text), style=style, no_wrap=True, overflow="ellipsis")


def _rungs(state: StudyState, draft: Draft, width: int, room: int) -> list[Text]:
    """The table of rungs, as much of it as there is room for; where it is too wide, the highest rungs.

    Args:
        state: what is known of the study.
        draft: its plan.
        width: of the terminal.
        room: lines that may be taken, the one above it not counted.
    """
    brackets, unit = bracket_count(state, draft.plan), draft.task.unit
    if not draft.plan.brackets or room < 3:
        return []
    shown = brackets if brackets < room else room - 2
    (_, *resources), *rows = rung_table(state, draft.plan, shown)
    for first in range(len(resources)):
        resource = f"{'… ' if first else ''}{unit} {resources[first]}"
        head = ["bracket", resource, *resources[first + 1 :]]
        cells = [head, *([row[0], *row[first + 1 :]] for row in rows)]
        labels = max(len(row[0]) for row in cells)
        cells = [[row[0].ljust(labels), *row[1:]] for row in cells]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        if sum(widths) + len(_GAP) * (len(widths) - 1) <= width:
            break
    lines = ["", *(_GAP.join(map(str.rjust, row, widths)).rstrip() for row in cells)]
    if more := brackets - shown:
        lines.append(f"… and {more} more bracket{'s' if more > 1 else ''}")
    return [_line(line, "" if 1 < i < len(rows) + 2 else "dim") for i, line in enumerate(lines)]
