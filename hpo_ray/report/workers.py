"""What the workers were busy with: their share of training time, and a bar for each stretch of a trial."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo_ray.report.parts import Plot, Section, Words
from hpo_ray.report.theme import BLUE, CYCLE, GREY, ORANGE, faded, styled
from hpo_ray.view import count

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from hpo_ray.report.subject import Subject

MOST_BARS = 2000
"""Stretches that are drawn."""
MOST_LANES = 500
SLACK = 0.05
"""Share of a step by which it may overlap the one before it in a lane, for reports are told a moment late."""
INTERVALS = 120
"""Over so many intervals the busy share is a mean each."""
RESOLUTION = 1000
"""Of what is shorter than this share of the study nothing would be seen."""
BRIDGED = 0.25
"""Share of a step that the gap to the next one of its trial may take for both to be one stretch."""


@dataclass
class Stretch:
    """Steps that a lane was busy with one after another.

    Attributes:
        lane: from 0.
        trial: its number; of several trials that of the one which took longest.
        start: of the first step, in seconds of the study's clock.
        end: of the last.
        steps: how many.
        several: whether there is more than one trial.
    """

    lane: int
    trial: int
    start: float
    end: float
    steps: int = 1
    several: bool = False


def spans(subject: Subject) -> list[tuple[float, float, int]]:
    """(start, end, trial) of each step that took time, by start.

    A step takes the time up to its report. Reports of one trial that come together are of steps that followed each
    other: each of these ends, at the latest, when the next one starts.
    """
    steps, found = subject.steps, []
    next_start: dict[int, float] = {}
    for i in range(len(steps) - 1, -1, -1):
        trial = steps.trial[i]
        end = min(steps.end[i], next_start.get(trial, steps.end[i]))
        start = max(0.0, end - steps.seconds[i])
        next_start[trial] = start
        if end > start:
            found.append((start, end, trial))
    return sorted(found)


def stretches(subject: Subject, most: int = MOST_BARS) -> list[Stretch]:
    """Steps in lanes: each in that of its trial if it is free, else in the one that is free for longest.

    A lane is no physical worker: the log doesn't say which one trained a trial. Steps of a trial that follow each
    other without a gap that could be seen are one stretch. Where that leaves too many, shorter and shorter neighbours
    in a lane become one, whoever's they are.

    Args:
        subject: the study.
        most: how many stretches there may be, unless there are more lanes.
    """
    return _stretches(spans(subject), subject.seconds, most)


def _stretches(steps: Sequence[tuple[float, float, int]], seconds: float, most: int) -> list[Stretch]:
    found = _of_trials(steps, seconds)
    free: OrderedDict[int, None] = OrderedDict()
    busy: list[tuple[float, int]] = []
    own: dict[int, int] = {}
    lanes = 0
    for one in found:
        while busy and busy[0][0] <= one.start + SLACK * (one.end - one.start) / one.steps:
            free[heapq.heappop(busy)[1]] = None
        one.lane = own.get(one.trial, -1)
        if one.lane in free:
            del free[one.lane]
        elif free:
            one.lane = free.popitem(last=False)[0]
        else:
            one.lane, lanes = lanes, lanes + 1
        own[one.trial] = one.lane
        heapq.heappush(busy, (one.end, one.lane))
    return _merged(found, max(most, lanes), seconds)


def _of_trials(steps: Sequence[tuple[float, float, int]], seconds: float) -> list[Stretch]:
    """The stretches of each trial, by start, not yet in lanes."""
    last: dict[int, Stretch] = {}
    found: list[Stretch] = []
    for start, end, trial in steps:
        before = last.get(trial)
        if before is not None and start - before.end <= min(seconds / RESOLUTION, BRIDGED * (end - start)):
            before.end = end
            before.steps += 1
        else:
            last[trial] = Stretch(-1, trial, start, end)
            found.append(last[trial])
    return found


def _merged(found: list[Stretch], most: int, seconds: float) -> list[Stretch]:
    short = seconds / RESOLUTION
    while len(found) > most:
        last: dict[int, Stretch] = {}
        longest: dict[int, float] = {}
        kept: list[Stretch] = []
        for one in found:
            before, length = last.get(one.lane), one.end - one.start
            if before is not None and one.end - before.start <= short:
                before.several = before.several or one.several or before.trial != one.trial
                if length > longest[one.lane]:
                    before.trial, longest[one.lane] = one.trial, length
                before.end, before.steps = max(before.end, one.end), before.steps + one.steps
            else:
                last[one.lane], longest[one.lane] = one, length
                kept.append(one)
        found, short = kept, 1.5 * short
    return found


@dataclass(frozen=True)
class Utilisation:
    """How busy the workers of a study were.

    Attributes:
        workers: how many trials could run at a time; what the log doesn't tell is the most that ever did.
        trained: seconds of all steps together.
        share: of the workers' time that was training, trained / (workers x elapsed).
        over_time: (end in seconds, share) over intervals of the same length; of a simulation, its own.
        stretches: who trained when; see `stretches`.
    """

    workers: int
    trained: float
    share: float
    over_time: list[tuple[float, float]]
    stretches: list[Stretch]

    @property
    def lanes(self) -> int:
        """How many trials trained at a time at most."""
        return max(one.lane for one in self.stretches) + 1


def utilisation(subject: Subject, intervals: int = INTERVALS) -> Utilisation | None:
    """How busy the workers were; None if the log tells no time that a step took."""
    found = spans(subject)
    if not found or subject.seconds <= 0:
        return None
    lanes = _stretches(found, subject.seconds, MOST_BARS)
    trained = sum(end - start for start, end, _ in found)
    if simulation := _simulation(subject):
        over_time = [(float(t), float(share)) for t, share in simulation["utilisation_over_time"]]
        return Utilisation(int(simulation["workers"]), trained, float(simulation["utilisation"]), over_time, lanes)
    workers = max(subject.started.workers or 0, max(one.lane for one in lanes) + 1)
    edges = np.linspace(0.0, subject.seconds, intervals + 1)
    until = sum_until([start for start, _, _ in found], edges) - sum_until([end for _, end, _ in found], edges)
    shares = np.diff(until) / (edges[1] * workers)
    over_time = [(float(t), min(1.0, float(share))) for t, share in zip(edges[1:], shares, strict=True)]
    return Utilisation(workers, trained, min(1.0, trained / (workers * subject.seconds)), over_time, lanes)


def _simulation(subject: Subject) -> Mapping[str, Any] | None:
    return subject.state.ended.simulation if subject.state.ended is not None else None


def sum_until(times: Sequence[float], edges: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of each edge the sum of how long before it these times were, those after it left out."""
    ordered = np.sort(np.asarray(times))
    before = np.searchsorted(ordered, edges)
    return np.asarray(before * edges - np.concatenate(([0.0], np.cumsum(ordered)))[before])


def workers(subject: Subject) -> Figure | None:
    """The share of the workers that was busy, and below it what they were busy with.

    Args:
        subject: the study.

    Returns:
        None if the log tells no time that a step took.
    """
    used = utilisation(subject)
    return None if used is None else _figure(subject, used)


def _figure(subject: Subject, used: Utilisation) -> Figure:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    shares, lanes = used.over_time, used.lanes
    gantt = lanes <= MOST_LANES
    height = min(620, 90 + 22 * lanes) if gantt else 0
    made = make_subplots(
        rows=1 + gantt,
        cols=1,
        shared_xaxes=True,
        row_heights=[130, height] if gantt else [1],
        vertical_spacing=24 / (250 + height),
    )
    styled(made.update_layout(template="none"))
    scale, unit = _clock(subject.seconds)
    virtual = "virtual " if _simulation(subject) else ""
    made.add_trace(
        go.Scatter(
            x=[0.0, *(t / scale for t, _ in shares)],
            y=[*(share for _, share in shares[:1]), *(share for _, share in shares)],
            name="busy",
            showlegend=False,
            mode="lines",
            line={"shape": "vh", "color": BLUE, "width": 1},
            fill="tozeroy",
            fillcolor=faded(BLUE, 0.25),
            hovertemplate="%{y:.0%} busy<extra></extra>",
        ),
        row=1,
        col=1,
    )
    if gantt:
        _add_bars(made, subject, used.stretches, scale)
        every = {"dtick": 1} if lanes <= 20 else {}
        made.update_yaxes(title_text="lane", range=[lanes - 0.5, -0.5], row=2, col=1, **every)
    made.update_yaxes(title_text="busy", range=[0, 1.03], tickformat=".0%", nticks=4, row=1, col=1)
    made.update_xaxes(range=[0, subject.seconds / scale])
    made.update_xaxes(title_text=f"{virtual}{unit}", row=1 + gantt, col=1)
    made.update_layout(height=250 + height, barmode="overlay", hovermode="closest")
    for event in subject.resumed:
        made.add_vline(event.time / scale, line={"color": ORANGE, "width": 1.5, "dash": "dash"})
    return made


def _add_bars(made: Figure, subject: Subject, bars: Sequence[Stretch], scale: float) -> None:
    """Adds the stretches, a trace for each bracket, or for each of a few colours that trials take by turns."""
    import plotly.graph_objects as go

    brackets = {trial.number: trial.tags.get("bracket") for trial in subject.trials}
    by_bracket = any(isinstance(bracket, int) for bracket in brackets.values())
    groups: dict[int, list[Stretch]] = {}
    for one in bars:
        bracket = brackets.get(one.trial)
        turn = one.trial if not by_bracket else bracket if isinstance(bracket, int) else 0
        groups.setdefault(turn % (len(CYCLE) - 1), []).append(one)
    kinds = {b for b in brackets.values() if isinstance(b, int)}
    named = by_bracket and 1 < len(kinds) <= len(CYCLE) - 1
    for group, members in sorted(groups.items()):
        name = _bracket(subject, group) if named else "trials"
        made.add_trace(
            go.Bar(
                base=[round(one.start / scale, 4) for one in members],
                x=[round((one.end - one.start) / scale, 4) for one in members],
                y=[one.lane for one in members],
                customdata=[_said(one) for one in members],
                name=name,
                showlegend=named,
                orientation="h",
                width=0.85,
                marker={"color": CYCLE[group], "line": {"width": 0.3, "color": GREY}},
                textposition="none",
                hovertemplate="%{customdata}<br>%{base:.4g} + %{x:.4g}<extra></extra>",
            ),
            row=2,
            col=1,
        )


def _bracket(subject: Subject, index: int) -> str:
    brackets = subject.draft.plan.brackets if subject.draft is not None else ()
    return f"bracket {index}" + (f" (s={brackets[index % len(brackets)].s})" if brackets else "")


def _said(one: Stretch) -> str:
    return f"{'several trials' if one.several else f'trial {one.trial}'}, {count(one.steps, 'step')}"


def _clock(seconds: float) -> tuple[float, str]:
    """(seconds in a unit, its name) that suits such a time."""
    return (1.0, "seconds") if seconds < 600 else (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def _digits(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 1000 else f"{seconds:.0f}"


def _percent(share: float) -> str:
    return "less than 1%" if 0 < share < 0.01 else f"{share:.0%}"


def section(subject: Subject) -> Section | None:
    """How busy the workers were."""
    used, simulation = utilisation(subject), _simulation(subject)
    if used is None:
        return None
    kind = "virtual second" if simulation else "second"
    how_many = count(used.workers, "worker")
    if subject.started.workers is None and not simulation:
        how_many = f"{how_many} (the most that trained at a time: the log doesn't tell how many there were)"
    told = f"{_digits(used.trained)} {kind}s of training in {_digits(subject.seconds)} {kind}s on {how_many}: "
    told += f"{_percent(used.share)} busy."
    if simulation and simulation["lost_workers"]:
        told += f" {count(simulation['lost_workers'], 'worker')} got lost on the way."
    caption = (
        "Above, the share of the workers that trained; below, who trained when, a bar for each stretch of a trial. A "
        "lane is no worker of its own, only a place that was free. Gaps are what isn't training: starting, "
        "checkpoints, a rung that waits for its last trial, and the end, when there is less left to do than there are "
        "workers."
    )
    if any(one.several for one in used.stretches):
        caption += " Short stretches of several trials are one bar, in the colour of the longest."
    if used.lanes > MOST_LANES:
        caption = f"The share of the workers that trained. There are too many to draw each ({used.workers})."
    if resumed := len(subject.resumed):
        caption += f" Dashed: taken up again ({count(resumed, 'time')}); the time that it stood still is left out."
    return Section("workers", "Workers", (Words(told), Plot(_figure(subject, used), caption, "workers")))
