"""The median stopping rule: trials that do worse than half of those before them end early.

Golovin, Solnik, Moitra, Kochanski, Karro and Sculley, "Google Vizier: A Service for Black-Box Optimization", KDD 2017,
section 3.2.1: a trial is stopped at step s if its best objective up to s is strictly worse than the median of the
running averages, over the reports up to step s, of all completed trials.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers.brackets import Budget, Plan, check_geometry
from hpo_ray.schedulers.core import CONTINUE, Action, Decision
from hpo_ray.schedulers.fifo import FIFOCore


@dataclass
class _Curve:
    """What one trial reported: its best loss, and the average of its losses up to each report."""

    best: float = math.inf
    total: float = 0.0
    resources: array[int] = field(default_factory=lambda: array("q"))
    averages: array[float] = field(default_factory=lambda: array("d"))

    def add(self, resource: int, loss: float) -> None:
        """Takes a report into account, unless it is of what a retried trial had reported before."""
        if self.resources and resource <= self.resources[-1]:
            return
        self.best = min(self.best, loss)
        self.total += loss
        self.resources.append(resource)
        self.averages.append(self.total / len(self.resources))

    def average(self, resource: int) -> float | None:
        """Of the losses up to a resource; None for a trial that did not get that far, or first reported above it."""
        if not self.resources or not self.resources[0] <= resource <= self.resources[-1]:
            return None
        return self.averages[bisect_right(self.resources, resource) - 1]


class MedianStoppingCore(FIFOCore):
    """The median stopping rule. See `hpo_ray.schedulers.MedianStopping`, also for the arguments.

    Of the trials that ended, only their running averages are kept: two numbers a report. Those at each resource at
    which a trial was judged are kept sorted, so that a judgement costs the same however many trials there were.

    Raises:
        ConfigError: a number is out of its range.
    """

    ranks = True

    def __init__(self, max_resource: int, min_resource: int = 1, min_trials: int = 5) -> None:
        check_geometry(max_resource, min_resource, 2)
        super().__init__(max_resource)
        if not isinstance(min_trials, int) or isinstance(min_trials, bool) or min_trials < 1:
            raise ConfigError(
                f"scheduler.min_trials={min_trials!r}: must be a whole number >= 1 (of completed trials that a median "
                f"is taken of)",
                key="scheduler.min_trials",
            )
        self.min_resource = min_resource
        self.min_trials = min_trials
        self._live: dict[str, _Curve] = {}
        self._completed: list[_Curve] = []
        self._averages: dict[int, list[float]] = {}
        """The completed trials' averages at each resource at which one was judged, sorted."""

    def plan(self, budget: Budget) -> Plan:
        """As `FIFO`, which is the most that it can be: how many trials end early depends on what they report."""
        plan = super().plan(budget)
        return Plan(plan.max_resource, plan.trials, exact=False, at_most=True, limit=plan.limit)

    def add(self, trial_id: str, config: Mapping[str, Any] | None = None) -> None:
        """A trial starts, or is retried."""
        self._live.setdefault(trial_id, _Curve())

    def report(self, trial_id: str, resource: int, loss: float) -> Decision:
        """Stops a trial whose best loss is above the median, at `max_resource`, or when the loss is not finite."""
        if not math.isfinite(loss):
            self._live[trial_id] = _Curve()  # it has failed, so that it is compared with nothing
            return Decision(Action.STOP, f"reported {loss} at {resource}")
        curve = self._live[trial_id]
        again = bool(curve.resources) and resource <= curve.resources[-1]
        curve.add(resource, loss)
        if resource >= self.max_resource:
            return Decision(Action.STOP, f"reached max_resource {self.max_resource}")
        if again or resource < self.min_resource:
            return CONTINUE
        averages = self._averages_at(resource)
        if len(averages) < self.min_trials or curve.best <= _median(averages):
            return CONTINUE
        return Decision(Action.STOP, f"worse than the median of {len(averages)} completed trials at {resource}")

    def next_decision(self, trial_id: str) -> int:
        """`min_resource`, and from there on each report."""
        return self.min_resource

    def end(self, trial_id: str, loss: float | None) -> None:
        """A trial that ended counts from now on, as far as it got; one that failed does not."""
        curve = self._live.pop(trial_id, None)
        if curve is None or loss is None or not math.isfinite(loss) or not curve.resources:
            return
        self._completed.append(curve)
        for resource, averages in self._averages.items():
            if (average := curve.average(resource)) is not None:
                insort(averages, average)

    def forget(self, trial_id: str) -> None:
        """Drops it, if it did not end."""
        self._live.pop(trial_id, None)

    def _averages_at(self, resource: int) -> list[float]:
        if resource not in self._averages:
            known = (curve.average(resource) for curve in self._completed)
            self._averages[resource] = sorted(average for average in known if average is not None)
        return self._averages[resource]


def _median(values: list[float]) -> float:
    """Of sorted values; of an even number of them the mean of the two in the middle."""
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
