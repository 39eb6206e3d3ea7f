"""The incumbent: the best trial known so far, against what had been spent by then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_ray.errors import ConfigError
from hpo_ray.report.parts import Plot, Section
from hpo_ray.report.theme import BLUE, MOST_POINTS, ORANGE, escaped, figure, thinned
from hpo_ray.results import Incumbent

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from hpo_ray.report.subject import Subject


def incumbent(subject: Subject, along: str = "resource") -> Figure | None:
    """The incumbent's value, and the best value at full resource, as a study went on.

    Args:
        subject: the study.
        along: `resource`, units trained by the whole study; or `time`, seconds on its clock.

    Returns:
        None if no trial has a value.
    """
    import plotly.graph_objects as go

    if along not in ("resource", "time"):
        raise ConfigError(f"along={along}: must be resource or time", key="along")
    state, metric = subject.state, subject.started.metric
    if not state.incumbents:
        return None
    virtual = "virtual " if state.ended is not None and state.ended.simulation else ""
    name, end = {
        "resource": (f"{subject.unit}s trained", float(state.trained)),
        "time": (f"{virtual}seconds", subject.seconds),
    }[along]
    drawn = figure(xaxis_title=escaped(name), yaxis_title=escaped(metric), hovermode="closest", height=360)
    drawn.update_xaxes(rangemode="tozero")
    for label, points, colour, dash in (
        ("incumbent", state.incumbents, ORANGE, "dot"),
        (f"best at {subject.unit} {subject.started.max_resource}", state.best_at_full, BLUE, "solid"),
    ):
        if not points:
            continue
        points = [points[i] for i in thinned(len(points))]
        x = [_at(point, along) for point in points]
        text = [f"trial {point.number} at {subject.unit} {point.resource}" for point in points]
        drawn.add_trace(
            go.Scatter(
                x=[*x, max(end, x[-1])],
                y=[*(point.value for point in points), points[-1].value],
                text=[escaped(t) for t in (*text, text[-1])],
                name=escaped(label),
                mode="lines+markers",
                line={"shape": "hv", "color": colour, "dash": dash},
                marker={"size": 5},
                hovertemplate="%{y:.6g}<br>%{x:.6g}<br>%{text}<extra></extra>",
            )
        )
    return drawn


def _at(point: Incumbent, along: str) -> float:
    return float(point.trained) if along == "resource" else point.time


def section(subject: Subject) -> Section | None:
    """The incumbent against resource and against time."""
    over_resource, over_time = incumbent(subject), incumbent(subject, along="time")
    if over_resource is None or over_time is None:
        return None
    what = (
        f"The incumbent is the best trial at the highest {subject.unit} that any has reached, so its value may get "
        f"worse when a trial goes further than all before. The best value at {subject.unit} "
        f"{subject.started.max_resource} only gets better."
    )
    if (changes := len(subject.state.incumbents)) > MOST_POINTS:
        what += f" {MOST_POINTS} of the {changes} times that it changed are drawn."
    return Section(
        "incumbent",
        "Incumbent",
        (
            Plot(
                over_resource, f"Against the {subject.unit}s that all trials together were trained. {what}", "incumbent"
            ),
            Plot(over_time, "The same against time.", "incumbent(along='time')"),
        ),
    )
