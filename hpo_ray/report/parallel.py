"""Parallel coordinates: each trial is a line through its value and its hyperparameters.

The axes lie one below the other, so that names and ticks have room on a phone, too. Drawn with lines rather than with
Plotly's own parallel coordinates, which need WebGL: a browser on a remote machine often has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpo_ray.report.importance import importances, unit_of
from hpo_ray.report.optuna_study import Compared, compared, shown
from hpo_ray.report.parts import Plot, Section
from hpo_ray.report.theme import BLUE, GREY, ORANGE, escaped, faded, figure, thinned

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from hpo_ray.report.subject import Subject

MOST_AXES = 8
MOST_LINES = 200
MOST_BEST = 50
_ABSENT = -0.1
"""Where the line of a trial goes that does not have the hyperparameter."""
_TICKS = 44
"""Characters that the ticks of an axis take at most: what fits on a phone."""


@dataclass(frozen=True)
class _Axis:
    """An axis: where each trial is on it, from 0 to 1 or `_ABSENT`, what it has there, and the ticks."""

    name: str
    places: Sequence[float]
    texts: Sequence[str]
    ticks: Sequence[tuple[float, str]]


def parallel(subject: Subject) -> Figure | None:
    """The trials as lines through the metric and the eight most important hyperparameters, the best tenth in colour.

    Args:
        subject: the study.

    Returns:
        None if fewer than two trials have a value, or no hyperparameter differs.
    """
    import plotly.graph_objects as go

    of = compared(subject)
    if of is None or len(of) < 2 or not of.parameters:
        return None
    axes = [_metric(of), *(_axis(of, name) for name in importances(of).names[:MOST_AXES])]
    tenth = max(1, min(MOST_BEST, len(of) // 10))
    best, rest = of.best_first[:tenth], of.best_first[tenth:]
    first, name_of_first = best[0], "the best"
    if (winner := _winner(subject, of)) not in (None, first):  # the best at a lower resource
        first, name_of_first = winner or 0, "the winner"
    others = [rest[i] for i in thinned(len(rest), MOST_LINES)]
    drawn = figure(height=70 + 48 * len(axes), hovermode="closest", margin={"l": 16, "r": 16, "t": 24, "b": 12})
    for name, trials, colour, alpha, width in (
        ("others", others, GREY, 0.22, 1.0),
        ("the best tenth", [i for i in best if i != first], BLUE, 0.65, 1.5),
        (name_of_first, [first], ORANGE, 1.0, 3.0),
    ):
        if not trials:
            continue
        x: list[float | None] = []
        y: list[float | None] = []
        text: list[str] = []
        for i in trials:
            number = f"trial {of.trials[i].number}"
            for row, axis in enumerate(axes):
                x.append(axis.places[i])
                y.append(-row)
                text.append(escaped(f"{axis.name} {axis.texts[i]}, {number}"))
            x.append(None)
            y.append(None)
            text.append("")
        drawn.add_trace(
            go.Scatter(
                x=x,
                y=y,
                text=text,
                name=name,
                mode="lines+markers" if width > 2 else "lines",
                line={"color": faded(colour, alpha), "width": width},
                hovertemplate="%{text}<extra></extra>" if colour != GREY else None,
                hoverinfo="skip" if colour == GREY else None,
            )
        )
    for row, axis in enumerate(axes):
        drawn.add_shape(type="line", x0=0, x1=1, y0=-row, y1=-row, line={"color": GREY, "width": 1}, layer="below")
        for place, tick in axis.ticks:
            side = "left" if place <= 0 else "right" if place >= 1 else "center"
            drawn.add_annotation(
                x=place, y=-row, text=escaped(tick), showarrow=False, xanchor=side, yshift=-10, font={"size": 10}
            )
    absent = any(_ABSENT in axis.places for axis in axes)
    drawn.update_xaxes(visible=False, range=[_ABSENT - 0.03 if absent else -0.02, 1.02])
    names = [shown(of.metric), *(shown(axis.name) for axis in axes[1:])]
    drawn.update_yaxes(
        tickvals=[-row for row in range(len(axes))], ticktext=names, range=[0.5 - len(axes), 0.3], showgrid=False
    )
    return drawn.update_yaxes(showline=False, ticks="")


def _winner(subject: Subject, of: Compared) -> int | None:
    """The index of the study's best trial; None where it is not among those that are compared."""
    best = subject.result.best
    return next((i for i, trial in enumerate(of.trials) if best is not None and trial.number == best.number), None)


def section(subject: Subject) -> Section | None:
    """The parallel coordinates."""
    of, drawn = compared(subject), parallel(subject)
    if of is None or drawn is None:
        return None
    tenth = max(1, len(of) // 10)
    caption = f"Each line is a trial, from its {of.metric} ({of.mode}) down through its hyperparameters. {of.said}"
    if len(of.parameters) > MOST_AXES:
        caption += f" The {MOST_AXES} most important of {len(of.parameters)} hyperparameters."
    if (winner := _winner(subject, of)) not in (None, of.best_first[0]):
        caption += f" The winner, trial {of.trials[winner or 0].number}, was not the best there."
    if tenth > MOST_BEST:
        caption += f" Of the best tenth, the first {MOST_BEST} are drawn."
    if len(of) - tenth > MOST_LINES:
        caption += f" Of the others, {MOST_LINES} are drawn."
    if any(name not in config for config in of.configs for name in importances(of).names[:MOST_AXES]):
        caption += " Left of an axis are trials that don't have the hyperparameter."
    return Section("parallel", "Hyperparameters of the best", (Plot(drawn, caption, "parallel"),))


def _metric(of: Compared) -> _Axis:
    low, high = min(of.values), max(of.values)
    log = low > 0 and high / low >= 100
    span = math.log(high / low) if log else high - low
    places = [(math.log(v / low) if log else v - low) / span if span else 0.5 for v in of.values]
    ticks = [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")] if span else [(0.5, f"{low:.4g}")]
    return _Axis(of.metric, places, [f"{v:.6g}" for v in of.values], ticks)


def _axis(of: Compared, name: str) -> _Axis:
    from optuna.distributions import CategoricalDistribution

    known = of.distributions[name]
    places = [unit_of(config[name], known) if name in config else _ABSENT for config in of.configs]
    texts = [_text(config[name]) if name in config else "absent" for config in of.configs]
    if isinstance(known, CategoricalDistribution):
        ticks = [((i + 0.5) / len(known.choices), _short(choice)) for i, choice in enumerate(known.choices)]
        widest = max(len(text) for _, text in ticks) + 2
        ticks = [ticks[i] for i in thinned(len(ticks), max(2, _TICKS // widest))]
    else:
        ticks = [(0.0, _text(known.low)), (1.0, _text(known.high))]  # type: ignore[attr-defined]
    return _Axis(name, places, texts, ticks)


def _text(value: Any) -> str:
    if isinstance(value, float) or (isinstance(value, int) and abs(value) >= 10**7):
        return f"{value:.4g}"
    return str(value)


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= 14 else f"{text[:13]}…"
