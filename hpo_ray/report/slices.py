"""The metric against the two most important hyperparameters: each alone, and both together. The plots are Optuna's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_ray.report.importance import importances
from hpo_ray.report.optuna_study import Compared, compared, quiet, shown, study_of
from hpo_ray.report.parts import Part, Plot, Section
from hpo_ray.report.theme import GREY, SEQUENTIAL, escaped, faded, styled, thinned

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from hpo_ray.report.subject import Subject

MOST_CONTOUR = 100
"""Trials in a contour: it is drawn on a grid of each with each."""


def slices(subject: Subject) -> Figure | None:
    """The metric against each of the two most important hyperparameters, a point a trial.

    Args:
        subject: the study.

    Returns:
        None if fewer than two trials have a value, or no hyperparameter differs.
    """
    of = compared(subject)
    if of is None or len(of) < 2 or not of.parameters:
        return None
    from optuna.visualization import plot_slice

    names = [escaped(name) for name in importances(of).names[:2]]
    with quiet():
        drawn = styled(plot_slice(of.study, params=names, target_name=escaped(of.metric)))
    bar = {"title": {"text": "trial", "font": {"color": GREY}}, "thickness": 12, "x": 1.0, "xpad": 8}
    for trace in drawn.data:
        if trace.name == "Feasible Trial":
            trace.marker.update(
                colorscale=SEQUENTIAL, size=6, line={"width": 0.5, "color": GREY}, opacity=0.85, colorbar=bar
            )
        else:
            trace.marker.update(color=faded(GREY, 0.6), symbol="x", size=6)
        trace.hovertemplate = "%{x}<br>%{y:.6g}<extra></extra>"
    drawn.update_xaxes(exponentformat="e")
    return drawn.update_layout(template="none", height=360, hovermode="closest")


def contour(subject: Subject) -> Figure | None:
    """The metric over the two most important hyperparameters.

    Args:
        subject: the study.

    Returns:
        None if there are no two that differ within at least four trials that have both.
    """
    of = compared(subject)
    if of is None or (pair := _pair(of)) is None:
        return None
    from optuna.visualization import plot_contour

    names, trials = pair
    study = study_of(of, [of.frozen[i] for i in trials])
    with quiet():
        drawn = styled(plot_contour(study, params=[escaped(name) for name in names], target_name=escaped(of.metric)))
    for trace in drawn.data:
        if trace.type == "contour":
            trace.update(
                colorscale=SEQUENTIAL,
                colorbar={"title": {"text": shown(of.metric), "font": {"color": GREY}}, "thickness": 12, "xpad": 8},
                line={"width": 0.5},
            )
        else:
            feasible = trace.name == "Feasible Trial"
            trace.marker.update(
                color="#ffffff" if feasible else GREY, size=6 if feasible else 7, line={"width": 1, "color": "#333333"}
            )
            trace.marker.symbol = "circle" if feasible else "x"
            trace.hovertemplate = "%{x}<br>%{y}<extra></extra>"
    drawn.update_xaxes(exponentformat="e")
    drawn.update_yaxes(exponentformat="e")
    return drawn.update_layout(template="none", height=420, hovermode="closest")


def section(subject: Subject) -> Section | None:
    """Slices, and a contour where two hyperparameters differ."""
    of, alone, both = compared(subject), slices(subject), contour(subject)
    if of is None or alone is None:
        return None
    names = importances(of).names[:2]
    crosses = " Crosses don't keep the constraints." * any(trial.feasible is False for trial in of.trials)
    caption = f"{of.metric} against {' and '.join(names)}, a point a trial, the later the lighter. {of.said}{crosses}"
    parts: list[Part] = [Plot(alone, caption, "slices")]
    if both is not None:
        pair, trials = _pair(of) or ((), [])
        less = f" Drawn from {len(trials)} of them." if len(trials) < len(of) else ""
        caption = f"{of.metric} over {' and '.join(pair)}, interpolated between the trials, which are the points.{less}"
        parts.append(Plot(both, caption, "contour"))
    return Section("slices", "The most important hyperparameters", parts)


def _pair(of: Compared) -> tuple[tuple[str, str], list[int]] | None:
    """The two most important hyperparameters, and the trials that have both."""
    names = importances(of).names[:2]
    if len(names) < 2:
        return None
    first, second = names
    both = [i for i, config in enumerate(of.configs) if first in config and second in config]
    if len(both) < 4:
        return None
    best = next(i for i in of.best_first if i in set(both))
    both = sorted({both[i] for i in thinned(len(both), MOST_CONTOUR - 1)} | {best})
    if any(len({of.configs[i][name] for i in both}) < 2 for name in names):
        return None
    return (first, second), both
