"""Learning curves: a line a trial, coloured by the highest rung that it reached."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hpo_ray.report.lines import chosen, left_out, line, value_axis
from hpo_ray.report.parts import Plot, Section
from hpo_ray.report.theme import BLUE, GREY, ORANGE, PINK, escaped, faded, figure
from hpo_ray.trials import TrialRecord
from hpo_ray.view import count

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from hpo_ray.report.subject import Subject

MOST_CURVES = 300
MOST_POINTS = 20_000
"""Points of all curves together."""
RAMP = ("#9ad0f0", "#56b4e9", "#2f93d1", "#0072b2", "#009e73")


def learning_curves(subject: Subject) -> Figure | None:
    """The metric of each trial against its resource; see `section` for how it is drawn.

    Args:
        subject: the study.

    Returns:
        None if no trial has a value.
    """
    drawn = _drawn(subject)
    if not drawn:
        return None
    best = subject.result.best
    unit, metric, levels = subject.unit, subject.started.metric, rungs_of(subject)
    axis = _axis(drawn)
    made = figure(xaxis_title=escaped(unit), yaxis_title=escaped(metric), hovermode="closest", height=440)
    made.update_yaxes(**axis)
    groups: dict[tuple[int, bool], list[TrialRecord]] = {}
    for trial in drawn:
        if best is None or trial.number != best.number:
            level = sum(r <= trial.resource for r in levels) - 1
            groups.setdefault((level, trial.state in ("stopped", "failed")), []).append(trial)
    named: set[int] = set()
    most = max(2, MOST_POINTS // len(drawn))
    for (level, dimmed), trials in sorted(groups.items(), key=lambda group: (not group[0][1], group[0][0])):
        colour = _colour(level, len(levels), dimmed)
        name = f"reached {levels[level]}" if levels and level >= 0 else _kind(levels, trials)
        _add(
            made,
            trials,
            most,
            name,
            faded(colour, 0.55 if dimmed else 0.9),
            1.2,
            level not in named or not levels,
            f"level {level}" if levels else name,
        )
        named.add(level)
    if best is not None and any(trial.number == best.number for trial in drawn):
        _add(made, [best], 2000, f"trial {best.number}, the winner", ORANGE, 3.5, True, "winner")
    _mark_failed(made, drawn)
    if len(levels) > 1:
        made.update_layout(
            shapes=[
                {"type": "line", "x0": r, "x1": r, "y0": 0, "y1": 1, "yref": "paper", "line": _RUNG, "layer": "below"}
                for r in levels
            ]
        )
    if len(levels) > 2:
        made.update_xaxes(type="log", tickmode="array", tickvals=levels, ticktext=[str(r) for r in levels])
    return made


_RUNG = {"color": faded(GREY, 0.6), "width": 1, "dash": "dot"}


def rungs_of(subject: Subject) -> tuple[int, ...]:
    """The resources at which trials are compared; none where they are compared at one only, or it isn't known."""
    resources = subject.draft.ladder.resources if subject.draft is not None else ()
    return resources if len(resources) > 1 else ()


def section(subject: Subject) -> Section | None:
    """The learning curves."""
    made = learning_curves(subject)
    if made is None:
        return None
    drawn, all_of_them = _drawn(subject), _with_value(subject)
    unit, rungs = subject.unit, rungs_of(subject)
    caption = f"The curves of {count(len(drawn), 'trial')}"
    if len(drawn) < len(all_of_them):
        caption = f"The curves of {len(drawn)} of {len(all_of_them)} trials"
        caption += (
            ": the winner, those that completed or failed as far as there is room, and an even choice of the rest"
        )
    faint = ", and faint ones were ended early" if any(trial.state == "stopped" for trial in drawn) else ""
    told = [f"{caption}; a dot is where one ends{faint}."]
    if rungs:
        told.append(
            f"Colour: the highest rung that a trial reached; dotted lines: the rungs, at {unit} {_text(rungs)}."
        )
    silent = sum(t.state == "failed" for t in subject.trials) - sum(t.state == "failed" for t in all_of_them)
    if any(trial.state == "failed" for trial in drawn) or silent:
        told.append("A cross is where a trial failed" + (f"; {silent} failed before a first value." if silent else "."))
    values = [value for trial in drawn for _, value in trial.history]
    if outside := left_out(_axis(drawn), values):
        told.append(f"{count(outside, 'value')} far from the others {'lies' if outside == 1 else 'lie'} outside.")
    if any(len(trial.history) > max(2, MOST_POINTS // len(drawn)) for trial in drawn):
        told.append("Long curves are thinned.")
    return Section("curves", "Learning curves", (Plot(made, " ".join(told), "learning_curves"),))


def _text(rungs: tuple[int, ...]) -> str:
    return ", ".join(str(r) for r in rungs)


def _with_value(subject: Subject) -> list[TrialRecord]:
    return [trial for trial in subject.trials if any(math.isfinite(value) for _, value in trial.history)]


def _drawn(subject: Subject) -> list[TrialRecord]:
    best = subject.result.best
    urgency = {"completed": 1, "failed": 1}

    def first(trial: TrialRecord) -> int:
        return 0 if best is not None and trial.number == best.number else urgency.get(trial.state, 2)

    return chosen(_with_value(subject), MOST_CURVES, first)


def _axis(drawn: list[TrialRecord]) -> dict[str, Any]:
    return value_axis(value for trial in drawn for _, value in trial.history)


def _colour(level: int, levels: int, dimmed: bool) -> str:
    if not levels:
        return GREY if dimmed else BLUE
    return GREY if level < 0 else RAMP[round(level * (len(RAMP) - 1) / (levels - 1))]


def _kind(levels: tuple[int, ...], trials: list[TrialRecord]) -> str:
    """What trials that reached no rung are called."""
    if levels:
        return f"below {levels[0]}"
    states = {"unfinished" if trial.state in ("running", "paused") else trial.state for trial in trials}
    return " or ".join(sorted(states))


def _add(
    made: Figure, trials: list[TrialRecord], most: int, name: str, colour: str, width: float, legend: bool, group: str
) -> None:
    """Adds trials as one trace, a gap between each two, a dot at each end."""
    import plotly.graph_objects as go

    xs: list[int | None] = []
    ys: list[float | None] = []
    numbers: list[int] = []
    sizes: list[float] = []
    for trial in trials:
        x, y = line(trial.history, most, [resource for resource, _ in trial.lineage or ()])
        xs += [*x, None]
        ys += [*y, None]
        numbers += [trial.number] * (len(x) + 1)
        last = max(i for i, value in enumerate(y) if value is not None) if any(v is not None for v in y) else -1
        sizes += [1.5 * width + 2.5 if i == last else 0 for i in range(len(x) + 1)]
    made.add_trace(
        go.Scatter(
            x=xs,
            y=ys,
            customdata=numbers,
            name=escaped(name),
            legendgroup=group,
            showlegend=legend,
            mode="lines+markers",
            line={"color": colour, "width": width},
            marker={"size": sizes, "color": colour, "opacity": 1, "line": {"width": 0}},
            hovertemplate="trial %{customdata}<br>%{x}: %{y:.6g}<extra></extra>",
        )
    )


def _mark_failed(made: Figure, drawn: list[TrialRecord]) -> None:
    """A cross at the last value of each trial that failed."""
    import plotly.graph_objects as go

    failed = [trial for trial in drawn if trial.state == "failed"]
    ends = [next((r, v) for r, v in reversed(trial.history) if math.isfinite(v)) for trial in failed]
    if ends:
        made.add_trace(
            go.Scatter(
                x=[resource for resource, _ in ends],
                y=[value for _, value in ends],
                customdata=[trial.number for trial in failed],
                name="failed",
                mode="markers",
                marker={"symbol": "x", "size": 8, "color": PINK},
                hovertemplate="trial %{customdata} failed<br>%{x}: %{y:.6g}<extra></extra>",
            )
        )
