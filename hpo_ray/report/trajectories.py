"""Hypergradients: where trials moved their own hyperparameters, and how well the gradients were solved for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hpo_ray.events import Reported
from hpo_ray.report.lines import MOST_PANELS, chosen, line, panels, value_axis
from hpo_ray.report.parts import Plot, Section
from hpo_ray.report.theme import GREEN, GREY, ORANGE, escaped, faded
from hpo_ray.report.words import listed
from hpo_ray.trials import HYPERPARAMETER
from hpo_ray.view import count

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from hpo_ray.report.subject import Subject

MOST_TRIALS = 50
MOST_STEPS = 400
"""Points of a line."""
SOLVER = ("hypergradient_norm", "inner_gradient_norm", "residual", "converged", "solver_iterations", "damping")
"""What a trial reports of its hypergradients."""
OF_MANY = ("mean", "min", "max", "std")


@dataclass
class Trajectory:
    """What a trial reported, step by step.

    Attributes:
        number: of the trial.
        steps: (resource, metrics) in the order of reporting.
    """

    number: int
    steps: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)

    def of(self, name: str) -> list[tuple[int, float]]:
        """(resource, value) of a metric; NaN where it is missing or no number."""
        found = []
        for resource, metrics in self.steps:
            value = metrics.get(name)
            found.append((resource, float(value) if isinstance(value, int | float) else math.nan))
        return found


def trajectories_of(subject: Subject) -> list[Trajectory]:
    """The trials that move hyperparameters themselves, by number."""
    numbers = {trial.trial_id: trial.number for trial in subject.trials}
    found: dict[int, Trajectory] = {}
    for event in subject.events:
        if isinstance(event, Reported) and any(name.startswith(HYPERPARAMETER) for name in event.metrics):
            number = numbers[event.trial_id]
            found.setdefault(number, Trajectory(number)).steps.append((event.resource, event.metrics))
    return [found[number] for number in sorted(found)]


def trajectories(subject: Subject) -> Figure | None:
    """The metric and each hyperparameter that trials move themselves, against resource.

    Args:
        subject: the study.

    Returns:
        None if no trial moves any.
    """
    everyone = trajectories_of(subject)
    return _trajectories(subject, everyone) if everyone else None


def _trajectories(subject: Subject, everyone: Sequence[Trajectory]) -> Figure:
    metric = subject.started.metric
    names = _moved(everyone)[: MOST_PANELS - 1]
    made = panels(
        [metric, *(f"{name} (mean, least and most of many)" if many else name for name, many in names)], subject.unit
    )
    shown = _shown(subject, everyone)
    test, lead = f"test_{metric}", _lead(subject, shown)
    _draw(made, subject, shown, metric, 1, [value for one in lead for _, value in one.of(test)])
    _add(made, lead, test, 1, f"{test} of the winner", GREEN, 1.5, dash="dash")
    for row, (name, many) in enumerate(names, 2):
        full = f"{HYPERPARAMETER}{name}"
        if many:
            for edge, fill in (("max", None), ("min", "tonexty")):
                _add(made, lead, f"{full}.{edge}", row, "band", faded(ORANGE, 0.35), 0.5, fill=fill, legend=False)
        _draw(made, subject, shown, f"{full}.mean" if many else full, row)
    return made


def solver(subject: Subject) -> Figure | None:
    """What trials report of their hypergradients: norm, residual of the linear system, iterations, damping.

    Args:
        subject: the study.

    Returns:
        None if they report nothing of it that changes.
    """
    return _solver(subject, trajectories_of(subject))


def _solver(subject: Subject, everyone: Sequence[Trajectory]) -> Figure | None:
    shown = _shown(subject, everyone)
    names = [name for name in SOLVER if len({v for t in shown for _, v in t.of(name) if math.isfinite(v)}) > 1]
    if not names:
        return None
    made = panels(names, subject.unit)
    for row, name in enumerate(names, 1):
        _draw(made, subject, shown, name, row)
    return made


def section(subject: Subject) -> Section | None:
    """The trajectories, and what is known of the hypergradients."""
    everyone = trajectories_of(subject)
    if not everyone:
        return None
    names, shown = _moved(everyone), min(len(everyone), MOST_TRIALS)
    told = [f"Each line is one of {count(len(everyone), 'trial')}; the winner's is bold."]
    if shown < len(everyone):
        told = [f"{shown} of {len(everyone)} trials are drawn; the winner's line is bold."]
    if any(many for _, many in names):
        told.append(
            "Of a hyperparameter with many values the line is the mean; the band is the winner's, from least to most."
        )
    if any(f"test_{subject.started.metric}" in metrics for _, metrics in everyone[0].steps[:1]):
        told.append("Where the test split parts from the metric, the hyperparameters overfit the validation split.")
    if len(names) > MOST_PANELS - 1:
        told.append(f"Not drawn: {listed([name for name, _ in names[MOST_PANELS - 1 :]], 8)}.")
    parts = [Plot(_trajectories(subject, everyone), " ".join(told), "trajectories")]
    if (solved := _solver(subject, everyone)) is not None:
        caption = (
            "How the hypergradients were found. A residual near 0 is an exact solution of the linear system, near 1 "
            "no better than none; a large norm of the inner gradient says that the weights were not trained to the end."
        )
        parts.append(Plot(solved, caption, "solver"))
    return Section("trajectories", "Hyperparameters moved by gradient", tuple(parts))


def _moved(everyone: Sequence[Trajectory]) -> list[tuple[str, bool]]:
    """(name, whether it has many values) of each hyperparameter that is moved."""
    names = dict.fromkeys(
        name.removeprefix(HYPERPARAMETER)
        for trajectory in everyone
        for _, metrics in trajectory.steps[:1]
        for name in metrics
        if name.startswith(HYPERPARAMETER)
    )
    many = {
        stem
        for stem, _, key in (name.rpartition(".") for name in names)
        if key == "mean" and all(f"{stem}.{k}" in names for k in OF_MANY)
    }
    found: dict[tuple[str, bool], None] = {}
    for name in names:
        stem, _, key = name.rpartition(".")
        found[(stem, True) if stem in many and key in OF_MANY else (name, False)] = None
    return list(found)


def _shown(subject: Subject, everyone: Sequence[Trajectory]) -> list[Trajectory]:
    best = subject.result.best
    return chosen(everyone, MOST_TRIALS, lambda one: int(best is None or one.number != best.number))


def _lead(subject: Subject, shown: Sequence[Trajectory]) -> list[Trajectory]:
    best = subject.result.best
    return [one for one in shown if best is not None and one.number == best.number]


def _draw(
    made: Figure, subject: Subject, shown: Sequence[Trajectory], name: str, row: int, also: Sequence[float] = ()
) -> None:
    """Draws a metric of all trials into a panel, the winner's last; `also`: what else has to have room there."""
    lead = _lead(subject, shown)
    rest = [one for one in shown if one not in lead]
    _add(made, rest, name, row, "trials", faded(GREY, 0.6), 1.2, legend=row == 1)
    if lead:
        _add(made, lead, name, row, f"trial {lead[0].number}, the winner", ORANGE, 3.0, legend=row == 1)
    values = [*(value for one in shown for _, value in one.of(name)), *also]
    made.update_yaxes(**value_axis(values), row=row, col=1)


def _add(
    made: Figure,
    shown: Sequence[Trajectory],
    name: str,
    row: int,
    label: str,
    colour: str,
    width: float,
    *,
    dash: str = "solid",
    fill: str | None = None,
    legend: bool = True,
) -> None:
    import plotly.graph_objects as go

    xs: list[int | None] = []
    ys: list[float | None] = []
    numbers: list[int] = []
    for one in shown:
        x, y = line(one.of(name), MOST_STEPS)
        xs += [*x, None]
        ys += [*y, None]
        numbers += [one.number] * (len(x) + 1)
    if not any(y is not None for y in ys):
        return
    alone = sum(x is not None for x in xs) == 1
    made.add_trace(
        go.Scatter(
            x=xs[:-1],
            y=ys[:-1],
            customdata=numbers[:-1],
            name=escaped(label),
            legendgroup=label,
            showlegend=legend,
            mode="lines+markers" if alone else "lines",
            line={"color": colour, "width": width, "dash": dash},
            fill=fill,
            fillcolor=faded(ORANGE, 0.15) if fill else None,
            hovertemplate="trial %{customdata}<br>%{x}: %{y:.6g}<extra></extra>",
        ),
        row=row,
        col=1,
    )
