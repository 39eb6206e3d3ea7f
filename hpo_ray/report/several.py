"""Several studies in one report: their incumbents over one another, and who came first.

Studies are compared where they are of one task, metric, mode and full resource: only then do their
values mean the same. What counts is the best value at full resource, as in `comparison`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hpo_ray.report.comparison import POINTS, Scale, Trace, bootstrap, medians, rows_of, table
from hpo_ray.report.parts import Part, Plot, Section, Table, Words
from hpo_ray.report.theme import CYCLE, GREY, escaped, faded, figure
from hpo_ray.view import clock, virtual_clock

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from hpo_ray.report.subject import Subject

MOST_LINES = 14
"""Twice the colours there are; the second time they are dashed."""
_NOT_THE_METHOD = ("study", "store", "tracker", "cluster", "view", "budget", "executor", "resources")
"""Parts of a configuration in which two studies of one method may differ."""


@dataclass(frozen=True)
class Entry:
    """A study in a comparison.

    Attributes:
        subject: the study.
        trace: its incumbent at full resource over time and resource, as losses.
        variant: what is the same for studies of one method that differ in their seed alone.
    """

    subject: Subject
    trace: Trace
    variant: str

    @property
    def value(self) -> float | None:
        """The best value at full resource; None if no trial got there."""
        return self.subject.sign * self.trace.final if self.trace.losses else None

    @property
    def virtual(self) -> bool:
        """Whether its seconds are virtual."""
        draft, ended = self.subject.draft, self.subject.state.ended
        return bool(ended is not None and ended.simulation) or bool(draft is not None and draft.virtual_workers)


@dataclass(frozen=True, eq=False)
class Group:
    """Studies that can be compared.

    Attributes:
        task: theirs.
        metric: theirs.
        mode: `min` or `max`.
        max_resource: their full resource.
        unit: what a unit of it is called.
        entries: the studies, as given.
    """

    task: str
    metric: str
    mode: str
    max_resource: int
    unit: str
    entries: Sequence[Entry]

    @property
    def scale(self) -> Scale:
        """How values become losses; without regret, so that the page shows the metric itself."""
        return Scale(self.metric, -1 if self.mode == "max" else 1, None, self.unit, self.virtual)

    @property
    def virtual(self) -> bool:
        """Whether all seconds are virtual."""
        return all(entry.virtual for entry in self.entries)

    @property
    def one_clock(self) -> bool:
        """Whether all seconds are of one kind."""
        return len({entry.virtual for entry in self.entries}) == 1

    @cached_property
    def ranks(self) -> list[int | None]:
        """The place of each study, from 1, equal values sharing the best one; None without a value."""
        finals = [entry.trace.final for entry in self.entries]
        return [1 + sum(other < final for other in finals) if math.isfinite(final) else None for final in finals]

    @cached_property
    def methods(self) -> dict[str, list[Entry]]:
        """The studies by what a line of the figure is called: those that differ in their seed alone together."""
        of_variant: dict[str, list[Entry]] = {}
        for entry in self.entries:
            of_variant.setdefault(entry.variant, []).append(entry)
        together: list[list[Entry]] = []
        for same in of_variant.values():
            seeds = [entry.subject.started.seed for entry in same]
            together += [same] if len(set(seeds)) == len(seeds) else [[entry] for entry in same]
        names = Counter(same[0].subject.started.method for same in together)
        labels: dict[str, list[Entry]] = {}
        for same in together:
            method, first = same[0].subject.started.method, same[0].subject.name
            label = method if names[method] == 1 else f"{method} ({first}{', …' if len(same) > 1 else ''})"
            while label in labels:  # two folders may hold studies of one name
                label += "'"
            labels[label] = sorted(same, key=lambda entry: entry.subject.started.seed)
        return labels


def groups(subjects: Sequence[Subject]) -> list[Group]:
    """The studies by task, metric, mode and full resource, in the order in which each comes first."""
    found: dict[tuple[str, str, str, int, str], list[Entry]] = {}
    for subject in subjects:
        started = subject.started
        key = started.task, started.metric, started.mode, started.max_resource, subject.unit
        found.setdefault(key, []).append(_entry(subject))
    return [Group(*key, entries) for key, entries in found.items()]


def several(subjects: Sequence[Subject]) -> list[Section]:
    """The sections of a report over several studies: for each group that can be compared, ranks and incumbents."""
    found = groups(subjects)
    sections = []
    if len(found) > 1:
        names = [f"{_title(group)}: {count_of(len(group.entries))}" for group in found]
        what = (
            f"These {len(subjects)} studies can't all be ranked together: values of other tasks, metrics, modes or "
            f"full resources don't mean the same. They are ranked within {len(found)} groups: {'; '.join(names)}."
        )
        sections.append(Section("groups", "Groups", (Words(what),)))
    for number, group in enumerate(found, 1):
        sections.append(Section(f"group-{number}", _title(group), _parts(group)))
    return sections


def incumbents(group: Group, along: str = "resource") -> Figure | None:
    """The best value at full resource of each study, or of several seeds their median with its 95% band.

    Args:
        group: the studies.
        along: `resource`, units trained by the whole study; or `time`, seconds on its clock.

    Returns:
        None if no study has a value.
    """
    if not any(entry.trace.losses for entry in group.entries):
        return None
    virtual = "virtual " if group.virtual else ""
    name = {"resource": f"{group.unit}s trained", "time": f"{virtual}seconds"}[along]
    drawn = figure(
        xaxis_title=escaped(name), yaxis_title=escaped(group.metric), hovermode="closest", showlegend=True, height=420
    )
    for place, (label, entries) in enumerate(_best_methods(group)):
        colour, dash = CYCLE[place % len(CYCLE)], "solid" if place < len(CYCLE) else "dash"
        traces = [entry.trace for entry in entries]
        if len(entries) == 1:
            points, line = _points(traces[0], along, group.scale), None
        else:
            label = f"{label}, {len(entries)} seeds"
            points, line = _median(traces, along, group.scale)
        if line is not None:
            drawn.add_trace(line.update(fillcolor=faded(colour, 0.18), legendgroup=label))
        drawn.add_trace(_line(label, points, colour, dash))
    return drawn.update_xaxes(rangemode="tozero")


def count_of(studies: int) -> str:
    """`1 study`, `3 studies`."""
    return "1 study" if studies == 1 else f"{studies} studies"


def _title(group: Group) -> str:
    return f"{group.task}: {group.metric} ({group.mode}) at {group.unit} {group.max_resource}"


def _entry(subject: Subject) -> Entry:
    state, sign = subject.state, subject.sign
    full = state.best_at_full
    trace = Trace(
        tuple(point.time for point in full),
        tuple(point.trained for point in full),
        tuple(sign * point.value for point in full),
        (subject.seconds, state.trained),
    )
    return Entry(subject, trace, _variant(subject))


def _variant(subject: Subject) -> str:
    """The method and all that it was told, but for the seed; of a study without configuration, the study."""
    if subject.draft is None:
        return f"study {subject.folder}"
    config = {key: part for key, part in subject.draft.config.items() if key not in _NOT_THE_METHOD}
    return f"{subject.started.method} {json.dumps(_without_seed(config), sort_keys=True, default=str)}"


def _without_seed(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {str(key): _without_seed(value) for key, value in config.items() if key != "seed"}
    return [_without_seed(value) for value in config] if isinstance(config, list | tuple) else config


def _parts(group: Group) -> list[Part]:
    parts: list[Part] = [ranking(group)]
    over_resource = incumbents(group)
    if over_resource is None:
        parts.append(Words(f"No study has a value at {group.unit} {group.max_resource}: there is nothing to rank."))
        return parts
    what = f"The best value at {group.unit} {group.max_resource}"
    if any(len(entries) > 1 for entries in group.methods.values()):
        what += "; of several seeds the median, with its 95% band by bootstrap"
    if len(group.methods) > MOST_LINES:
        what += f"; the {MOST_LINES} best of {len(group.methods)}"
    parts.append(Plot(over_resource, f"{what}, against the {group.unit}s that all trials of a study were trained.", ""))
    over_time = incumbents(group, "time")
    if not group.one_clock:
        parts.append(
            Words("Some of the studies were simulated: their virtual seconds can't be drawn against real ones.")
        )
    elif over_time is not None:
        parts.append(Plot(over_time, "The same against time.", ""))
    if (seeds := _seeds(group)) is not None:
        parts += seeds
    return parts


def ranking(group: Group) -> Table:
    """A row a study, the best first."""
    order = sorted(range(len(group.entries)), key=lambda i: (group.ranks[i] or math.inf, group.entries[i].subject.name))
    rows = []
    for i in order:
        entry, rank = group.entries[i], group.ranks[i]
        shared = group.ranks.count(rank) > 1 and rank is not None
        value = entry.value
        rows.append(
            [
                "-" if rank is None else f"{rank}=" if shared else str(rank),
                entry.subject.name,
                entry.subject.started.method,
                str(entry.subject.started.seed),
                _state(entry.subject),
                _none_yet(entry.subject) if value is None else f"{value:.6g}",
                str(entry.trace.trained[-1]) if entry.trace.losses else "-",
                _clock(entry, entry.trace.times[-1]) if entry.trace.losses else "-",
                f"{entry.trace.end[1]}",
                _clock(entry, entry.trace.end[0]),
            ]
        )
    best = f"best {group.metric} at {group.unit} {group.max_resource}"
    head = ["rank", "study", "method", "seed", "state", best, f"{group.unit}s to it", "time to it"]
    return Table([*head, f"{group.unit}s in all", "time in all"], rows, (0, 3, 5, 6, 7, 8, 9))


def _state(subject: Subject) -> str:
    ended = subject.state.ended
    if ended is None:
        return "not finished"
    return (
        ended.state if ended.state == "finished" or not ended.reason else f"{ended.state}: {_first_line(ended.reason)}"
    )


def _first_line(text: str) -> str:
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= 80 else f"{line[:79]}…"


def _none_yet(subject: Subject) -> str:
    """What a study has instead of a value at full resource."""
    best = subject.state.best
    return "no value" if best is None else f"none; {best.value:.6g} at {subject.unit} {best.resource}"


def _clock(entry: Entry, seconds: float) -> str:
    return f"{virtual_clock(seconds)} virtual" if entry.virtual else clock(seconds)


def _seeds(group: Group) -> list[Part] | None:
    """The methods against each other over their seeds, where all have the same ones."""
    methods = group.methods
    seeds = [[entry.subject.started.seed for entry in entries] for entries in methods.values()]
    if len(methods) < 2 or len(seeds[0]) < 2 or any(of_method != seeds[0] for of_method in seeds):
        return None
    traces = {label: [entry.trace for entry in entries] for label, entries in methods.items()}
    head, *rows = table(rows_of(traces, group.scale), group.scale)
    words = f"Over the {len(seeds[0])} seeds that all methods share; a mean rank of 1 is the first place for each seed."
    return [Words(words), Table(head, rows, tuple(range(1, len(head))))]


def _best_methods(group: Group) -> list[tuple[str, list[Entry]]]:
    """Those with a value, in the order given; with more than can be told apart, the best of them."""
    middle = {
        label: sorted(e.trace.final for e in entries)[len(entries) // 2] for label, entries in group.methods.items()
    }
    known = [label for label, entries in group.methods.items() if any(entry.trace.losses for entry in entries)]
    best = set(sorted(known, key=lambda label: middle[label])[:MOST_LINES])
    return [(label, entries) for label, entries in group.methods.items() if label in best]


def _points(trace: Trace, along: str, scale: Scale) -> tuple[list[float], list[float]]:
    """A study's steps, to its end."""
    x = [float(v) for v in (trace.trained if along == "resource" else trace.times)]
    if not x:
        return [], []
    end = float(trace.end[1] if along == "resource" else trace.end[0])
    return [*x, max(end, x[-1])], [scale.shown(loss) for loss in (*trace.losses, trace.losses[-1])]


def _median(traces: Sequence[Trace], along: str, scale: Scale) -> tuple[tuple[list[float], list[float]], Any]:
    """The median over the seeds where half of them have a value, and its band where that is finite."""
    import numpy as np
    import plotly.graph_objects as go

    axis = 1 if along == "resource" else 0
    grid = np.linspace(0.0, max(trace.end[axis] for trace in traces), POINTS)
    of_seeds = [(trace.trained if axis else trace.times, trace) for trace in traces]
    losses = np.array([[trace.at(x, steps) for x in grid] for steps, trace in of_seeds])
    middle, (low, high) = medians(losses), bootstrap(losses)
    finite = np.isfinite(middle)
    points = grid[finite].tolist(), [scale.shown(float(loss)) for loss in middle[finite]]
    banded = finite & np.isfinite(low) & np.isfinite(high)
    if not banded.any():
        return points, None
    x, lower = _steps(grid[banded], low[banded])
    upper = _steps(grid[banded], high[banded])[1]
    band = go.Scatter(
        x=[*x, *reversed(x)],
        y=[scale.shown(v) for v in (*lower, *reversed(upper))],
        fill="toself",
        mode="lines",
        line={"width": 0},
        showlegend=False,
        hoverinfo="skip",
    )
    return points, band


def _steps(x: Any, y: Any) -> tuple[list[float], list[float]]:
    """The corners of a line that goes across and then up or down."""
    corners = [(float(x[0]), float(y[0]))]
    for i in range(1, len(x)):
        corners += [(float(x[i]), float(y[i - 1])), (float(x[i]), float(y[i]))]
    return [corner[0] for corner in corners], [corner[1] for corner in corners]


def _line(label: str, points: tuple[list[float], list[float]], colour: str, dash: str) -> Any:
    import plotly.graph_objects as go

    none: list[Any] = [None]  # a line without points is in the legend
    lacks = "" if points[0] else " (less than half at full resource)"
    return go.Scatter(
        x=points[0] or none,
        y=points[1] or none,
        name=escaped(label + lacks),
        legendgroup=label,
        mode="lines",
        line={"shape": "hv", "color": colour if points[0] else GREY, "dash": dash, "width": 2},
        hovertemplate="%{y:.6g}<br>%{x:.6g}",
    )
