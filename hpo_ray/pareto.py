"""Several metrics at once: bounds that they keep, who dominates whom, and the volume that a front dominates.

Values are losses: the caller has turned the sign where more is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Losses = Sequence[float]


def violations(constraints: Mapping[str, Mapping[str, float]], metrics: Mapping[str, Any]) -> list[float]:
    """How far metrics lie beyond their bounds, one number a bound: 0 or less keeps it, infinite was not reported.

    Args:
        constraints: `low`, `high` or both by the metric's name.
        metrics: what a trial reported.
    """
    beyond = []
    for name, bounds in constraints.items():
        value = metrics.get(name)
        known = float(value) if isinstance(value, int | float) and not math.isnan(value) else None
        if bounds.get("low") is not None:
            beyond.append(math.inf if known is None else bounds["low"] - known)
        if bounds.get("high") is not None:
            beyond.append(math.inf if known is None else known - bounds["high"])
    return beyond


def dominates(a: Losses, b: Losses) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def front(points: Sequence[Losses]) -> list[int]:
    """Indices of the points that no other dominates, in their order; of equal points all."""
    order = sorted(range(len(points)), key=lambda i: tuple(points[i]))
    kept: list[int] = []
    for i in order:  # whoever dominates a point comes before it in this order
        if not any(dominates(points[j], points[i]) for j in kept):
            kept.append(i)
    return sorted(kept)


def hypervolume(points: Sequence[Losses], reference: Losses) -> float:
    """The volume of what the points dominate within the reference point, exactly.

    By slicing along the last metric (hypervolume by slicing objectives, While et al. 2006): meant for some hundred
    points in a few dimensions.

    Args:
        points: losses; those that do not lie below the reference in each metric add nothing.
        reference: the worst losses that still count.
    """
    inside = [tuple(point) for point in points if all(p < r for p, r in zip(point, reference, strict=True))]
    inside = [inside[i] for i in front(inside)]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(point[0] for point in inside)
    inside.sort(key=lambda point: point[-1])
    volume = 0.0
    edges = [*(point[-1] for point in inside[1:]), reference[-1]]
    for i, (point, edge) in enumerate(zip(inside, edges, strict=True)):
        if edge > point[-1]:
            below = [p[:-1] for p in inside[: i + 1]]
            volume += (edge - point[-1]) * hypervolume(below, reference[:-1])
    return volume
