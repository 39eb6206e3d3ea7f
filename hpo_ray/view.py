"""What a person sees while a study runs: a live table in a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hpo_ray.results import StudyState
from hpo_ray.schedulers.brackets import Plan
from hpo_ray.trials import TrialRecord, split_error

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.status import Status

    from hpo_ray.study import Draft

DRAW_EVERY_S = 0.25
LINE_EVERY_S = 60.0
ENDED = ("completed", "stopped", "failed")
STATES = ("running", "paused", *ENDED)
LINE_LENGTH = 160
FAILURES_SHOWN = 10
FAILURE_EVERY_S = 1.0


class View:
    """Sees nothing. Base of the others, and what `view=none` gives.

    The seconds that it is given are those of the study's clock, which a simulation moves as it likes; how often it
    draws goes by the clock on the wall.

    Attributes:
        silent: whether nothing at all is printed.
    """

    silent = True

    def prepare(self, draft: Draft) -> None:
        """A study is about to start: code is imported, the executor gets ready."""

    def start(self, draft: Draft, folder: Path) -> None:
        """A study starts."""

    def update(self, state: StudyState, elapsed_s: float) -> None:
        """Something may have happened. Called after each step of the loop, so it must be quick."""

    def stop(self) -> None:
        """The study has ended, or could not start. May be called again."""


class PlainView(View):
    """One line at the start, one for each change of the incumbent, one for each of the first failures, one a minute.

    Args:
        out: where to print; by default standard output.
        now: the clock on the wall, in seconds.
    """

    silent = False

    def __init__(self, out: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._out = out or sys.stdout
        self._now = now
        self._best: str | None = None
        self._last_line_s = now()
        self._failed = self._failures_shown = 0
        self._last_failure_s = -math.inf

    def start(self, draft: Draft, folder: Path) -> None:
        """Says what will run and where it goes."""
        self._draft = draft
        self._print(f"{headline(draft)} -> {folder}")

    def update(self, state: StudyState, elapsed_s: float) -> None:
        """A line if another trial is the incumbent, or a minute has passed."""
        best = state.best
        if best is not None and best.trial_id != self._best:
            self._best = best.trial_id
            self._print(f"{clock(elapsed_s)}  best {incumbent(best, self._draft)}: {trial_text(best)}")
        now = self._now()
        if state.states["failed"] > self._failed and self._failures_shown < FAILURES_SHOWN:
            if now - self._last_failure_s >= FAILURE_EVERY_S:
                self._last_failure_s, self._failed = now, state.states["failed"]
                self._failures_shown += 1
                more = "; further ones are only counted" if self._failures_shown == FAILURES_SHOWN else ""
                self._print(f"{clock(elapsed_s)}  {failure(state)}{more}")
        if now - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now
            known = f"; best {incumbent(best, self._draft)}" if best is not None else ""
            self._print(progress(state, self._draft, elapsed_s) + known)

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


class LiveView(View):
    """A table in the terminal that is drawn anew at most four times a second.

    Args:
        console: the terminal; by default the one on standard output.
        now: the clock on the wall, in seconds.
    """

    silent = False

    def __init__(self, console: Console | None = None, now: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console

        self._console = console or Console()
        self._live: Live | None = None
        self._status: Status | None = None
        self._now = now
        self._drawn_s = -math.inf

    def prepare(self, draft: Draft) -> None:
        """Says what will run while Ray and torch are imported and started, which takes some seconds."""
        executor = str(draft.config["executor"]["_target_"]).rpartition(".")[2]
        self._status = self._console.status(f"{headline(draft)}; starting {executor}")
        self._status.start()

    def start(self, draft: Draft, folder: Path) -> None:
        """Starts to draw."""
        from rich.live import Live

        self.stop()
        self._draft, self._folder = draft, folder
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def update(self, state: StudyState, elapsed_s: float) -> None:
        """Draws if the last drawing is old enough."""
        if self._live is not None and self._now() - self._drawn_s >= DRAW_EVERY_S:
            self._drawn_s = self._now()
            self._live.update(self._render(state, elapsed_s), refresh=True)

    def stop(self) -> None:
        """Takes the table away; what is printed next stands in its place."""
        for shown in (self._status, self._live):
            if shown is not None:
                shown.stop()
        self._status = self._live = None

    def _render(self, state: StudyState, elapsed_s: float) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        parts: list[Any] = [Text(headline(self._draft), style="bold"), Text(str(self._folder), style="dim")]
        total = self._draft.plan.total_resource
        if total:
            bar = Table.grid(expand=True)  # a bar alone ends no line
            bar.add_row(ProgressBar(total=total, completed=min(state.trained, total)))
            parts.append(bar)
        parts.append(Text(progress(state, self._draft, elapsed_s)))
        if state.best is not None:
            line = Text("best ", style="green")
            line.append(incumbent(state.best, self._draft), style="bold green")
            parts += [line, Text("  " + trial_text(state.best))]
        if state.last_failure is not None:
            parts.append(Text(failure(state), style="red"))
        if rows := rung_table(state, self._draft.plan):
            table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
            for name in ("bracket", *(f"rung {i}" for i in range(max(len(row) for row in rows) - 1))):
                table.add_column(name, justify="right")
            for row in rows:
                table.add_row(*row)
            parts.append(table)
        return Group(*parts)


def make_view(kind: str) -> View:
    """The view of a kind: `live`, `plain`, `none`, or `auto`: live in a terminal, plain elsewhere."""
    if kind == "none":
        return View()
    if kind == "live" or (kind == "auto" and sys.stdout.isatty()):
        return LiveView()
    return PlainView()


def headline(draft: Draft) -> str:
    """What will run, in one line."""
    plan, unit = draft.plan, draft.task.unit
    how_many = "trials" if plan.trials is None else count(plan.trials, "trial")
    if draft.grid_size is not None:
        how_many += f" of the {count(draft.grid_size, 'point')} of a grid"
    limit = f" for {clock(draft.budget.time_s)}" if draft.budget.time_s is not None else ""
    total = "" if plan.total_resource is None else f", {plan.about}{count(plan.total_resource, unit)}"
    virtual = f", {count(draft.virtual_workers, 'virtual worker')}" if draft.virtual_workers else ""
    return f"{draft.method} on {draft.task.name}: {how_many}{total}{limit}{virtual}"


def incumbent(best: TrialRecord, draft: Draft) -> str:
    """The incumbent's value, where it was reached, and whose it is."""
    return f"{draft.task.metric} {best.value:.6g} at {draft.task.unit} {best.resource} (trial {best.number})"


def failure(state: StudyState) -> str:
    """The last failure in one line, and how many there are: `trial 7 failed (3 so far): ValueError: no`."""
    assert state.last_failure is not None
    number, error = state.last_failure
    how_many = f" ({state.states['failed']} so far)" if state.states["failed"] > 1 else ""
    return f"trial {number} failed{how_many}: {last_line(error)}"


def last_line(error: str) -> str:
    """The last line of what a trial failed with, which says what it was; no longer than a line should be."""
    line = (split_error(error)[0].strip().splitlines() or ["unknown error"])[-1].strip()
    return line if len(line) <= LINE_LENGTH else line[: LINE_LENGTH - 3] + "..."


def progress(state: StudyState, draft: Draft, elapsed_s: float) -> str:
    """Trials by state, resource spent of planned, time left."""
    states = ", ".join(f"{state.states[name]} {name}" for name in STATES if state.states[name])
    total = draft.plan.total_resource
    left: list[float] = []
    if total and state.trained and not draft.plan.at_most and (draft.plan.exact or state.trained < total):
        left.append(elapsed_s * max(0, total - state.trained) / state.trained)
    if draft.budget.time_s is not None:
        left.append(max(0.0, draft.budget.time_s - elapsed_s))
    time_left = f", {clock(min(left))} left" if left else ""
    return f"{clock(elapsed_s)}  {states or 'starting'}; {spent(state.trained, draft)}{time_left}"


def spent(trained: int, draft: Draft) -> str:
    """Units trained, of how many: `20 of 69 steps`."""
    total, unit = draft.plan.total_resource, draft.task.unit
    if not total:
        return count(trained, unit)
    return f"{trained} of {draft.plan.about}{count(total, unit)}"


def rung_table(state: StudyState, plan: Plan) -> list[list[str]]:
    """A row a bracket: its number and s, then for each rung how many trials have reported there, of how many."""
    if not plan.brackets:
        return []
    reached: dict[int, list[int]] = {}
    for (index, resource), trials in state.reached.items():
        if index is not None:
            rungs = plan.brackets[index % len(plan.brackets)].rungs
            counts = reached.setdefault(index, [0] * len(rungs))
            for i, rung in enumerate(rungs):
                counts[i] += trials * (resource >= rung.r)
    rows = []
    for index, counts in sorted(reached.items()):
        bracket = plan.brackets[index % len(plan.brackets)]
        cells = [f"{done}/{rung.n} at {rung.r}" for done, rung in zip(counts, bracket.rungs, strict=True)]
        rows.append([f"{index} (s={bracket.s})", *cells])
    return rows


def trial_text(trial: TrialRecord) -> str:
    """A trial's configuration in one line, with hyperparameters where it has moved them to itself."""
    now = dict(trial.config)
    for name, value in trial.hyperparameters.items():
        of_many = name.removesuffix(".mean")
        if name in now:
            now[name] = value
        elif of_many != name and of_many in now:
            now[of_many] = f"{value:.4g} (mean)"
    return config_text(now)


def config_text(config: Mapping[str, Any], prefix: str = "") -> str:
    """A configuration in one line, nested names dotted."""
    parts = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            parts.append(config_text(value, f"{prefix}{name}."))
        else:
            parts.append(f"{prefix}{name}={f'{value:.4g}' if isinstance(value, float) else value}")
    return " ".join(parts)


def count(n: int, unit: str) -> str:
    """`1 epoch`, `27 epochs`."""
    return f"{n} {unit}" if n == 1 else f"{n} {unit}s"


def table(rows: list[list[str]]) -> list[str]:
    """Lines with the columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def virtual_clock(seconds: float) -> str:
    """As `clock`, but with digits where a simulation takes less than a minute."""
    return clock(seconds) if seconds >= 60 else f"{seconds:.3g} s"


def clock(seconds: float) -> str:
    """Seconds as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
