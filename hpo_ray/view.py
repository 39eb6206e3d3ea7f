"""What a person sees while a study runs: a live table in a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hpo_ray.estimate import Estimate, by_bracket
from hpo_ray.results import StudyState
from hpo_ray.schedulers.brackets import Plan
from hpo_ray.trials import TrialRecord, split_error

if TYPE_CHECKING:
    from hpo_ray.study import Draft

LINE_EVERY_S = 60.0
ENDED = ("completed", "stopped", "failed")
STATES = ("running", "paused", *ENDED)
LINE_LENGTH = 160
FAILURES_SHOWN = 10
FAILURE_EVERY_S = 1.0
_ESCAPE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]?|\x1b[\]PX^_].*?(?:\x07|\x1b\\\\|$)|\x1b[ -/]*[0-~]?|\x9b[0-?]*[ -/]*[@-~]?", re.S
)
"""What a terminal would obey: colours, moves of the cursor, titles of the window."""


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
        now: seconds that pass on the wall, from any start.
        date: the time of day, in seconds since the epoch.
    """

    silent = False

    def __init__(
        self,
        out: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
        date: Callable[[], float] = time.time,
    ) -> None:
        self._out = out or sys.stdout
        self._now, self._date = now, date
        self._best: str | None = None
        self._last_line_s = now()
        self._failed = self._failures_shown = 0
        self._last_failure_s = -math.inf

    def start(self, draft: Draft, folder: Path) -> None:
        """Says what will run and where it goes."""
        self._draft, self._estimate = draft, estimate_for(draft)
        self._print(f"{headline(draft)} -> {folder}")

    def update(self, state: StudyState, elapsed_s: float) -> None:
        """A line if another trial is the incumbent, or a minute has passed."""
        now, best = self._now(), state.best
        at_s = now if self._draft.virtual_workers else elapsed_s
        self._estimate.observe(state, at_s, elapsed_s)
        if best is not None and best.trial_id != self._best:
            self._best = best.trial_id
            self._print(f"{clock(elapsed_s)}  best {incumbent(best, self._draft)}: {trial_text(best)}")
        if state.states["failed"] > self._failed and self._failures_shown < FAILURES_SHOWN:
            if now - self._last_failure_s >= FAILURE_EVERY_S:
                self._last_failure_s, self._failed = now, state.states["failed"]
                self._failures_shown += 1
                more = "; further ones are only counted" if self._failures_shown == FAILURES_SHOWN else ""
                self._print(f"{clock(elapsed_s)}  {failure(state)}{more}")
        if now - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now
            left = until(self._estimate.left_s(state, at_s, elapsed_s), self._date())
            known = f"best {incumbent(best, self._draft)}" if best is not None else ""
            parts = [trials_text(state), resource_text(state, self._draft), left, known]
            self._print(f"{elapsed_text(elapsed_s, self._draft)}  {'; '.join(part for part in parts if part)}")

    def _print(self, line: str) -> None:
        print(clean(line), file=self._out, flush=True)


def make_view(kind: str) -> View:
    """The view of a kind: `live`, `plain`, `none`, or `auto`: live in a terminal, plain elsewhere.

    Where there is no terminal that could draw it, `live` is plain, too.
    """
    if kind == "none":
        return View()
    if kind != "plain" and sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown"):
        from hpo_ray.live import LiveView

        return LiveView()
    return PlainView()


def estimate_for(draft: Draft) -> Estimate:
    """What estimates the time that is left of a study."""
    return Estimate(draft.plan, draft.budget, virtual=draft.virtual_workers > 0)


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
    line = clean((split_error(error)[0].strip().splitlines() or ["unknown error"])[-1]).strip()
    return line if len(line) <= LINE_LENGTH else line[: LINE_LENGTH - 3] + "..."


def trials_text(state: StudyState) -> str:
    """Trials by state: `3 running, 2 paused, 1 failed`."""
    return ", ".join(f"{state.states[name]} {name}" for name in STATES if state.states[name]) or "starting"


def resource_text(state: StudyState, draft: Draft) -> str:
    """Units spent and left: `20 of 69 steps, 49 to go`."""
    spent_units, total = state.trained - state.again, draft.plan.total_resource
    again = f" (and {state.again} again)" if state.again else ""
    to_go = f", {draft.plan.about}{total - spent_units} to go" if total and total > spent_units else ""
    return f"{spent(spent_units, draft)}{again}{to_go}"


def elapsed_text(elapsed_s: float, draft: Draft) -> str:
    """The study's clock."""
    return f"{clock(elapsed_s)} (virtual)" if draft.virtual_workers else clock(elapsed_s)


def until(left_s: float | None, date_s: float) -> str:
    """The time that is left, and when it will be over: `about 2:50 left, until 14:32`; empty if that is not known.

    Args:
        left_s: seconds that are left. They are shown in steps of 10 from a minute on, and in minutes from ten on.
        date_s: now, in seconds since the epoch; the end is shown in the local time.
    """
    if left_s is None:
        return ""
    step = 1 if left_s < 60 else 10 if left_s < 600 else 60
    now, end = datetime.fromtimestamp(date_s), datetime.fromtimestamp(date_s + left_s)
    days = (end.date() - now.date()).days
    date = "%H:%M" if days == 0 else "%a %H:%M" if days < 7 else "%Y-%m-%d %H:%M"
    return f"about {clock(round(left_s / step) * step)} left, until {end.strftime(date)}"


def spent(trained: int, draft: Draft) -> str:
    """Units trained, of how many: `20 of 69 steps`."""
    total, unit = draft.plan.total_resource, draft.task.unit
    if not total:
        return count(trained, unit)
    return f"{trained} of {draft.plan.about}{count(total, unit)}"


def rung_table(state: StudyState, plan: Plan, most: int | None = None) -> list[list[str]]:
    """A row a bracket, a column a resource: how many trials have reported there, of how many. First the resources.

    Brackets that have not begun are among them, where it is known how many there will be.

    Args:
        state: what is known of the study.
        plan: what its scheduler will do.
        most: so many brackets at most: the last ones that have begun, and what fits of the next.
    """
    if not plan.brackets:
        return []
    resources = sorted({rung.r for bracket in plan.brackets for rung in bracket.rungs})
    rows, begun = [["bracket", *map(str, resources)]], by_bracket(state)
    end = bracket_count(state, plan)
    start = 0
    if most is not None and end > most:
        end = max(most, max(begun, default=0) + 1)
        start = end - most
    for index in range(start, end):
        bracket, counts = plan.brackets[index % len(plan.brackets)], begun.get(index, {})
        cells = dict.fromkeys(resources, "")
        for rung in bracket.rungs:
            done = sum(trials for resource, trials in counts.items() if resource >= rung.r)
            cells[rung.r] = f"{done}/{'' if plan.exact else '~'}{rung.n}"
        rows.append([f"{index} (s={bracket.s})", *cells.values()])
    return rows


def bracket_count(state: StudyState, plan: Plan) -> int:
    """How many brackets there are: those that are planned or, where that is open, those that have begun."""
    planned = 0 if plan.rounds is None else plan.rounds * len(plan.brackets)
    return max(planned, 1 + max((index for index, _ in state.reached if index is not None), default=-1))


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
            shown = f"{value:.4g}" if isinstance(value, float) else clean(str(value))
            parts.append(f"{prefix}{clean(name)}={shown}")
    return " ".join(parts)


def clean(text: str) -> str:
    """A text that no terminal takes for anything but text: without escape sequences and control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " for c in _ESCAPE.sub("", text))


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
