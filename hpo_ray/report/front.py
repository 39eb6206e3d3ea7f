"""The Pareto front: of several metrics the trials that no other beats in all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hpo_ray import pareto
from hpo_ray.report.parts import Part, Plot, Section, Table, Words
from hpo_ray.report.theme import BLUE, GREY, ORANGE, PINK, escaped, faded, figure, styled, thinned
from hpo_ray.results import losses
from hpo_ray.trials import TrialRecord
from hpo_ray.view import config_text, count

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

    from hpo_ray.report.subject import Subject

MOST_METRICS = 4
"""More would be more than six panels."""
MOST_ROWS = 12
_MOST_FOR_VOLUME = 200
"""Points of a front whose volume takes less than a second."""


@dataclass(frozen=True)
class Front:
    """Several metrics of the trials at one resource.

    Attributes:
        metrics: `min` or `max` by name.
        resource: where they were reported: the highest that any trial has reached that keeps the constraints.
        front: the trials that no other beats in all, best first in the first metric.
        dominated: the others, by number.
        infeasible: those that don't keep the constraints.
        reference: for each metric the worst value that still counts; empty where one lacks.
        volume: what the front dominates within the reference; None without one, or with more than 200 points.
        chosen: whether the study optimises these metrics; otherwise its task says that they are worth a trade-off.
    """

    metrics: Mapping[str, str]
    resource: int
    front: Sequence[TrialRecord]
    dominated: Sequence[TrialRecord]
    infeasible: Sequence[TrialRecord]
    reference: Mapping[str, float]
    volume: float | None
    chosen: bool


def front_of(subject: Subject) -> Front | None:
    """The front of the metrics that a study optimises, or that its task says are worth a trade-off.

    Returns:
        None if there are no two such metrics, or no trial has all of them.
    """
    started, task = subject.started, subject.draft.task if subject.draft is not None else None
    metrics, reference, chosen = started.metrics, started.reference, True
    if not metrics and task is not None:
        metrics, reference, chosen = task.tradeoff, task.reference, False
    if len(metrics) < 2:
        return None
    started = replace(started, metrics=metrics)
    points = {
        trial.number: point
        for trial in subject.trials
        if trial.value is not None and trial.state != "failed" and (point := losses(started, trial)) is not None
    }
    trials = [trial for trial in subject.trials if trial.number in points]
    highest = max((t.resource for t in trials if t.feasible is not False), default=None)
    if highest is None:
        return None
    trials = [trial for trial in trials if trial.resource == highest]
    kept = [trial for trial in trials if trial.feasible is not False]
    best = set(pareto.front([points[trial.number] for trial in kept]))
    reference = {name: reference[name] for name in metrics} if set(metrics) <= set(reference) else {}
    volume = None
    if reference and len(best) <= _MOST_FOR_VOLUME:
        worst = [-reference[name] if mode == "max" else reference[name] for name, mode in metrics.items()]
        volume = pareto.hypervolume([points[kept[i].number] for i in sorted(best)], worst)
    return Front(
        metrics,
        highest,
        sorted((kept[i] for i in best), key=lambda trial: (points[trial.number], trial.number)),
        [trial for i, trial in enumerate(kept) if i not in best],
        [trial for trial in trials if trial.feasible is False],
        reference,
        volume,
        chosen,
    )


def front(subject: Subject) -> Figure | None:
    """The trials by two metrics, those on the Pareto front joined; of three or four metrics, a panel for each pair.

    Args:
        subject: the study.

    Returns:
        None if the study has no two metrics to trade off, or no trial has all of them.
    """
    found = front_of(subject)
    return None if found is None else _draw(found)


def section(subject: Subject) -> Section | None:
    """The front as a figure and as a table."""
    found = front_of(subject)
    if found is None:
        return None
    names = list(found.metrics)
    parts: list[Part] = []
    if not found.chosen:
        parts.append(
            Words(f"The study optimised {subject.started.metric} alone; its task names these metrics as a trade-off.")
        )
    what = " and ".join(f"{name} ({mode})" for name, mode in found.metrics.items())
    caption = (
        f"{what} of the trials at {subject.unit} {found.resource}; on the front are those that no other beats in all."
    )
    if len(names) == 2:
        caption += " Everything on the worse side of the line is beaten."
    else:
        caption += " A trial on the front may be beaten in the two metrics of a panel: it is better in another one."
    if len(names) > MOST_METRICS:
        caption += f" Of {len(names)} metrics, the first {MOST_METRICS} are drawn."
    if len(found.dominated) > len(thinned(len(found.dominated))):
        caption += f" Of {len(found.dominated)} others, {len(thinned(len(found.dominated)))} are drawn."
    parts += [Plot(_draw(found), f"{caption} {_volume(found)}", "front"), _table(found)]
    return Section("front", "Pareto front" if found.chosen else "Trade-off", parts)


def _volume(found: Front) -> str:
    if found.volume is not None:
        worst = ", ".join(f"{name} {value:.6g}" for name, value in found.reference.items())
        return f"Hypervolume {found.volume:.6g} against {worst}."
    if found.reference:
        return f"No hypervolume: the front has {len(found.front)} trials, which takes long."
    return "No hypervolume: task.reference does not have a value for each metric."


def _table(found: Front) -> Table:
    names = list(found.metrics)
    rows = [
        [str(trial.number), *(f"{trial.metrics[name]:.6g}" for name in names), config_text(trial.config)]
        for trial in found.front[:MOST_ROWS]
    ]
    left = len(found.front) - MOST_ROWS
    return Table(
        ["trial", *names, "configuration"],
        rows,
        tuple(range(len(names) + 1)),
        f"and {count(left, 'trial')} more on the front" if left > 0 else "",
    )


def _draw(found: Front) -> Figure:
    from plotly.subplots import make_subplots

    pairs = list(itertools.combinations(list(found.metrics)[:MOST_METRICS], 2))
    if len(pairs) == 1:
        drawn = figure(height=420, hovermode="closest")
    else:
        drawn = make_subplots(rows=len(pairs), cols=1, vertical_spacing=0.22 / len(pairs))
        drawn.update_layout(template="none", height=60 + 300 * len(pairs), hovermode="closest")
        styled(drawn)
    for row, pair in enumerate(pairs, 1):
        at = {"row": row, "col": 1} if len(pairs) > 1 else {}
        for trace in _traces(found, pair):
            trace.showlegend = row == 1
            drawn.add_trace(trace, **at)
        for update, name in zip((drawn.update_xaxes, drawn.update_yaxes), pair, strict=True):
            update(title_text=escaped(f"{name} ({found.metrics[name]})"), **at)
    return drawn


def _traces(found: Front, pair: tuple[str, str]) -> list[Scatter]:
    """What is drawn of two metrics, from the back to the front."""
    import plotly.graph_objects as go

    x, y = pair
    alone = len(found.metrics) == 2
    dominated = [found.dominated[i] for i in thinned(len(found.dominated))]
    infeasible = [found.infeasible[i] for i in thinned(len(found.infeasible))]
    traces: list[Scatter] = []
    inside = [trial for trial in found.front if found.reference and _counts(found, trial)]
    if alone and inside:
        # From the best in x on, the next one is worse in x: until there, what is attained in y stays as it is.
        xs, ys = ([trial.metrics[name] for trial in inside] for name in pair)
        worst_x, worst_y = (found.reference[name] for name in pair)
        traces.append(
            go.Scatter(
                x=[xs[0], *xs, worst_x, worst_x],
                y=[worst_y, *ys, ys[-1], worst_y],
                fill="toself",
                fillcolor=faded(BLUE, 0.18),
                line={"width": 0, "shape": "hv"},
                mode="lines",
                name="hypervolume",
                hoverinfo="skip",
            )
        )
    for name, trials, marker in (
        ("beaten", dominated, {"color": faded(GREY, 0.55), "size": 6}),
        ("beyond a constraint", infeasible, {"color": faded(PINK, 0.7), "symbol": "x", "size": 7}),
        ("front", found.front, {"color": BLUE, "size": 9}),
    ):
        if trials:
            joined = name == "front" and alone
            traces.append(
                go.Scatter(
                    x=[trial.metrics[x] for trial in trials],
                    y=[trial.metrics[y] for trial in trials],
                    text=[_hover(found, trial) for trial in trials],
                    name=name,
                    mode="lines+markers" if joined else "markers",
                    line={"color": BLUE, "width": 1.5, "shape": "hv"} if joined else None,
                    marker=marker,
                    hovertemplate="%{text}<extra></extra>",
                )
            )
    if found.reference:
        traces.append(
            go.Scatter(
                x=[found.reference[x]],
                y=[found.reference[y]],
                name="reference",
                mode="markers",
                marker={"color": ORANGE, "symbol": "cross-thin", "size": 12, "line": {"color": ORANGE, "width": 2}},
                hovertemplate="reference<br>%{x:.6g}<br>%{y:.6g}<extra></extra>",
            )
        )
    return traces


def _counts(found: Front, trial: TrialRecord) -> bool:
    """Whether a trial is better than the reference in each metric."""
    return all(
        trial.metrics[name] < found.reference[name] if mode == "min" else trial.metrics[name] > found.reference[name]
        for name, mode in found.metrics.items()
    )


def _hover(found: Front, trial: TrialRecord) -> str:
    lines = [f"trial {trial.number}", *(f"{name} {trial.metrics[name]:.6g}" for name in found.metrics)]
    return "<br>".join(escaped(line) for line in lines)
