"""Trials as lines against resource: which of them are drawn, where a line breaks, and on which kind of axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hpo_ray.report.theme import escaped, styled, thinned

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Item = TypeVar("Item")

LOG_FROM = 50.0
"""An axis is logarithmic if all is above 0 and the largest value is so many times the smallest."""
OUTLIERS = 0.05
"""Share of the values at either end that does not decide how far a linear axis reaches."""
REACH = 3.0
"""How many times the spread of the others an outlier may lie outside before the axis leaves it out."""
MOST_PANELS = 12


def chosen(items: Sequence[Item], most: int, urgency: Callable[[Item], int]) -> list[Item]:
    """At most so many of them, in their order: by urgency (0 first), and evenly spread among those of the same one."""
    kept: set[int] = set()
    by_urgency: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        by_urgency.setdefault(urgency(item), []).append(index)
    for _, indices in sorted(by_urgency.items()):
        room = most - len(kept)
        if room == 1 and len(indices) > 1:
            indices = indices[:1]
        kept.update(indices[i] for i in thinned(len(indices), room)) if room > 0 else None
    return [items[index] for index in sorted(kept)]


def line(
    points: Sequence[tuple[int, float]], most: int | None = None, cuts: Sequence[int] = ()
) -> tuple[list[int | None], list[float | None]]:
    """The x and y of a line: broken where the resource goes back or stays, and where a value is not finite.

    Args:
        points: (resource, value) in the order of reporting.
        most: how many points are drawn, the first and the last among them; by default all.
        cuts: resources at which other weights were copied: the line is broken before the next report.
    """
    x: list[int | None] = []
    y: list[float | None] = []
    before: int | None = None
    for i in thinned(len(points), most) if most is not None else range(len(points)):
        resource, value = points[i]
        if before is not None and (resource <= before or any(before <= cut < resource for cut in cuts)):
            x.append(None)
            y.append(None)
        x.append(resource)
        y.append(float(f"{value:.6g}") if math.isfinite(value) else None)
        before = resource
    return x, y


def value_axis(values: Iterable[float]) -> dict[str, Any]:
    """How an axis of such values is scaled, for `update_yaxes`: logarithmic, linear, or linear without far outliers."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if not ordered:
        return {}
    if ordered[0] > 0 and ordered[-1] / ordered[0] >= LOG_FROM:
        return {"type": "log", "exponentformat": "power", "dtick": _decades(ordered[0], ordered[-1])}
    cut = int(len(ordered) * OUTLIERS)
    low, high = ordered[cut], ordered[-1 - cut]
    spread = high - low
    if spread > 0 and (ordered[0] < low - REACH * spread or ordered[-1] > high + REACH * spread):
        return {
            "type": "linear",
            "range": [max(ordered[0], low - spread) - spread / 20, min(ordered[-1], high + spread) + spread / 20],
        }
    return {"type": "linear"}


def left_out(axis: dict[str, Any], values: Iterable[float]) -> int:
    """How many values lie outside an axis of `value_axis`."""
    low, high = axis.get("range", (-math.inf, math.inf))
    return sum(not low <= value <= high for value in values if math.isfinite(value))


def _decades(low: float, high: float) -> Any:
    """Ticks of a logarithmic axis: 1, 2, 5 within a few decades, else whole decades, some of them left out."""
    decades = math.log10(high) - math.log10(low)
    return "D2" if decades <= 2 else max(1, round(decades / 6))


def panels(titles: Sequence[str], unit: str, height: int = 170) -> Figure:
    """Panels under each other that share the axis of resource, each with its name above."""
    from plotly.subplots import make_subplots

    total = 112 + height * len(titles)
    made = make_subplots(
        rows=len(titles),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=min(0.3, 36 / total),
        subplot_titles=[escaped(title) for title in titles],
    )
    styled(made.update_layout(template="none"))
    legend = {"yref": "container", "y": 1.0, "yanchor": "top"}
    made.update_layout(height=total, hovermode="closest", margin={"t": 64}, legend=legend)
    made.update_annotations(font={"size": 12}, x=0.0, xanchor="left")
    made.update_xaxes(title_text=escaped(unit), row=len(titles), col=1)
    return made
