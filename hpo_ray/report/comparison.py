"""Methods against each other over many seeds: the table, and the figure of the incumbent over time.

What counts is the best value that a trial has reported at full resource. Values from early stopping don't count: for
different methods they are of different resources, and would not mean the same.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESAMPLES = 2000
POINTS = 200
# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Trace:
    """One study: its incumbent at full resource over time.

    Attributes:
        times: seconds at which it got better, rising.
        trained: units of resource that had been spent by then.
        losses: what it was then; regret, or the metric with its sign turned where more is better.
        end: (seconds, units) of the whole study.
    """

    times: tuple[float, ...]
    trained: tuple[int, ...]
    losses: tuple[float, ...]
    end: tuple[float, int]

    @property
    def final(self) -> float:
        """The last loss; infinite if no trial reached full resource."""
        return self.losses[-1] if self.losses else math.inf

    def first_at(self, target: float, along: Sequence[float]) -> float:
        """Where along times or units the loss is first at or below the target; infinite if it never is."""
        return next((x for x, loss in zip(along, self.losses, strict=True) if loss <= target), math.inf)

    def at(self, x: float, along: Sequence[float]) -> float:
        """The loss at a point of time or units; infinite before the first."""
        place = bisect_right(along, x)
        return self.losses[place - 1] if place else math.inf


@dataclass(frozen=True)
class Scale:
    """How values become losses, which are better the lower they are.

    Attributes:
        metric: the metric's name.
        sign: 1 when less is better, -1 when more is.
        optimum: the best value that there is, if it is known; losses are then regrets.
        unit: what a unit of resource is called.
        virtual: whether seconds are virtual.
    """

    metric: str
    sign: int
    optimum: float | None
    unit: str
    virtual: bool

    def loss(self, value: float) -> float:
        """Regret, or the signed value."""
        return self.sign * value if self.optimum is None else max(0.0, self.sign * (value - self.optimum))

    def shown(self, loss: float) -> float:
        """A loss as it is shown: regret, or the metric itself."""
        return loss if self.optimum is not None else self.sign * loss

    @property
    def name(self) -> str:
        """What is shown: `regret` or the metric."""
        return self.metric if self.optimum is None else "regret"


def trace(result: Mapping[str, Any], scale: Scale) -> Trace:
    """The trace of a study from its result.json."""
    full, totals = result["best_at_full_resource"], result["totals"]
    return Trace(
        tuple(i["seconds"] for i in full),
        tuple(i["trained"] for i in full),
        tuple(scale.loss(i["value"]) for i in full),
        (totals["seconds"] or 0.0, totals["resource"]),
    )


@dataclass(frozen=True)
class Row:
    """A method in the table. Losses as shown; None where half of the seeds or more have none.

    Attributes:
        method: its label.
        seeds: how many studies.
        median: of the final losses.
        quartiles: of the final losses: where the middle half of the seeds lies.
        rank: mean over the seeds of its place among the methods, from 1; ties share the mean of their places.
        reached: studies that reached the target.
        time: seconds after which half of the studies had reached the target.
        trained: units of resource after which half of the studies had reached it.
        spent: median units of resource in all.
    """

    method: str
    seeds: int
    median: float | None
    quartiles: tuple[float | None, float | None]
    rank: float
    reached: int
    time: float | None
    trained: float | None
    spent: float


def target_of(traces: Mapping[str, Sequence[Trace]]) -> tuple[str, float]:
    """(whose, what): the median that random search reaches; without it, that of the first method."""
    label = next((label for label in traces if label.split()[0] == "random"), next(iter(traces)))
    return label, _median([t.final for t in traces[label]])


def rows_of(traces: Mapping[str, Sequence[Trace]], scale: Scale) -> list[Row]:
    """The table, a row a method.

    Args:
        traces: by label of the method, one for each seed, seeds in the same order.
        scale: how losses are shown.
    """
    target = target_of(traces)[1]
    finals = np.array([[t.final for t in of_method] for of_method in traces.values()])
    ranks = _ranks(finals).mean(axis=1)
    rows = []
    for (label, of_method), final, rank in zip(traces.items(), finals, ranks, strict=True):
        times = [t.first_at(target, t.times) for t in of_method]
        trained = [t.first_at(target, t.trained) for t in of_method]
        low, high = (_shown(float(np.quantile(final, q, method="nearest")), scale) for q in (0.25, 0.75))
        rows.append(
            Row(
                label,
                len(of_method),
                _shown(_median(list(final)), scale),
                (low, high) if scale.shown(1.0) > 0 else (high, low),
                float(rank),
                sum(math.isfinite(time) for time in times),
                _finite(_half(times)),
                _finite(_half(trained)),
                _median([float(t.end[1]) for t in of_method]),
            )
        )
    return rows


def table(rows: Sequence[Row], scale: Scale) -> list[list[str]]:
    """The rows as text, the header first."""
    clock = "virtual seconds" if scale.virtual else "seconds"
    head = ["method", f"{scale.name}, median", "middle half", "mean rank", "reached"]
    lines = [[*head, f"{clock} to target", f"{scale.unit}s to target", f"{scale.unit}s spent"]]
    for row in rows:
        low, high = (_text(value) for value in row.quartiles)
        lines.append(
            [
                row.method,
                _text(row.median),
                f"{low} to {high}",
                f"{row.rank:.2f}",
                f"{row.reached} of {row.seeds}",
                _text(row.time),
                _text(row.trained),
                f"{row.spent:g}",
            ]
        )
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|---|" + "---:|" * (len(lines[0]) - 1), *body])


def draw(path: Path, traces: Mapping[str, Sequence[Trace]], scale: Scale, title: str) -> None:
    """Draws the median incumbent over time and over resource, with 95% bands of that median by bootstrap.

    Args:
        path: where to; the suffix says in which format.
        traces: by label of the method, one for each seed.
        scale: how losses are shown.
        title: what stands above.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    clock = "virtual time, s" if scale.virtual else "time, s"
    for panel, axis, name in zip(panels, (0, 1), (clock, f"{scale.unit}s trained"), strict=True):
        draw_panel(panel, traces, scale, axis)
        panel.set_xlabel(name)
        panel.set_xlim(left=0.0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"{scale.name} of the incumbent at full resource")
    finals = [t.final for of_method in traces.values() for t in of_method if t.losses]
    if scale.optimum is not None and finals and min(finals) > 0:
        panels[0].set_yscale("log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_panel(panel: Axes, traces: Mapping[str, Sequence[Trace]], scale: Scale, axis: int) -> None:
    """Draws one panel of the figure: along time (`axis` 0) or resource (1)."""
    for colour, (label, of_method) in zip(_cycle(len(traces)), traces.items(), strict=True):
        grid = np.linspace(0.0, max(t.end[axis] for t in of_method), POINTS)
        along = [(t.times, t.trained)[axis] for t in of_method]
        losses = np.array([[t.at(x, steps) for x in grid] for t, steps in zip(of_method, along, strict=True)])
        low, high = bootstrap(losses)
        shown = np.vectorize(scale.shown)
        middle = medians(losses)
        finite = np.isfinite(middle)
        if not finite.any():
            panel.plot([], [], color=colour, label=f"{label} (none at full resource)")
            continue
        panel.step(grid[finite], shown(middle[finite]), where="post", color=colour, label=label)
        banded = finite & np.isfinite(high) & np.isfinite(low)
        panel.fill_between(
            grid[banded], shown(low[banded]), shown(high[banded]), step="post", color=colour, alpha=0.18, linewidth=0
        )


def bootstrap(losses: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The 95% interval of the median, by the percentile bootstrap over seeds (Efron and Tibshirani 1993, chapter 13).

    Args:
        losses: one row a seed, one column a point in time; infinite where there is no value yet.

    Returns:
        lower and upper end for each column; infinite where the interval reaches to those without a value.
    """
    draws = np.random.default_rng(0).integers(len(losses), size=(RESAMPLES, len(losses)))
    of_draws = np.array([medians(losses[drawn]) for drawn in draws])
    low, high = np.quantile(of_draws, [0.025, 0.975], axis=0, method="nearest")  # values that occur: no inf - inf
    return low, high


def medians(losses: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The median of each column; infinite if that of the middle is."""
    ordered, count = np.sort(losses, axis=0), len(losses)
    return np.asarray((ordered[(count - 1) // 2] + ordered[count // 2]) / 2)


def _ranks(finals: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Places by column, from 1; ties share the mean of their places."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(finals, axis=0))


def _median(values: Sequence[float]) -> float:
    """The median; infinite ones count as such."""
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else (low + high) / 2


def _half(values: Sequence[float]) -> float:
    """The value that half of them are at or below."""
    return sorted(values)[(len(values) - 1) // 2]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(loss: float, scale: Scale) -> float | None:
    return scale.shown(loss) if math.isfinite(loss) else None


def _text(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.4g}"


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
