"""Where Ray's controller gets its trials from."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search import SearchAlgorithm, Searcher

from hpo_ray.errors import StudyError
from hpo_ray.executors.internals import StudyStorage, new_trial


class TrialSource(SearchAlgorithm):  # type: ignore[misc]  # ray ships no types
    """Turns a searcher's suggestions into trials, up to a limit and never more at a time than fit.

    It takes the place of Ray's `SearchGenerator` and `ConcurrencyLimiter`. Ids are the trial's number, so that they are
    the same in each run. Trials at a time means running or pending: Ray's limiter counts paused trials too, and a
    scheduler that waits for a rung to fill then waits for ever.

    Args:
        searcher: which configuration comes next; any searcher of Ray Tune.
        trainable: the class that Ray runs.
        trainable_name: the name under which it is registered.
        storage: where the study lies.
        resources: what one trial gets; None where the trainable says so itself.
        limit: how many trials; None for no limit.
        concurrency: how many at a time.
        max_failures: how often a trial is retried.
        checkpoint_at_end: whether a trial is saved when it ends.
        metric: name of the metric.
    """

    def __init__(
        self,
        searcher: Searcher,
        *,
        trainable: type,
        trainable_name: str,
        storage: StudyStorage,
        resources: Any,
        limit: int | None,
        concurrency: int,
        max_failures: int,
        checkpoint_at_end: bool,
        metric: str,
    ) -> None:
        self.searcher = searcher
        self.limit = limit
        self.concurrency = concurrency
        self.active: Callable[[], int] = lambda: 0
        """How many trials run or are pending; set to ask the controller."""
        self.promotions: Callable[[bool], int] = lambda finished: 0
        """How many promoted trials wait for a place; set to ask the scheduler. They come before new trials."""
        self.number = 0
        """That of the next new trial."""
        self.again: deque[Trial] = deque()
        """Trials of a study that is taken up, which have to train: they come before new ones."""
        self._values: dict[str, dict[str, Any]] = {}
        self.can_save = bool(getattr(trainable, "can_save", True))
        """Whether the trainable has checkpoints, as far as is known."""
        self._metric = metric
        self._trainable = trainable
        self._trial_arguments: dict[str, Any] = {
            "trainable_name": trainable_name,
            "storage": storage,
            "resources": resources,
            "max_failures": max_failures,
            "checkpoint_at_end": checkpoint_at_end,
        }

    @property
    def total_samples(self) -> int:
        """How many trials there will be; 0 if only time limits them."""
        return self.limit or 0

    def next_trial(self) -> Trial | None:
        """The next trial; None if there are no more, or as many as may be at a time."""
        if self.again:
            return self.again.popleft() if self.room() > 0 else None
        if self.is_finished() or self.room() <= self.promotions(False):
            return None
        trial_id = trial_id_of(self.number)
        config = self.searcher.suggest(trial_id)
        if config == Searcher.FINISHED:
            self.set_finished()
            return None
        if config is None:
            if not self.active():
                raise StudyError(
                    f"{type(self.searcher).__name__} gives no configuration although nothing is running; "
                    f"a searcher that has no more returns Searcher.FINISHED"
                )
            return None
        number, self.number = self.number, self.number + 1
        return self.make(trial_id, number, config)

    def make(self, trial_id: str, number: int, config: Mapping[str, Any]) -> Trial:
        """A trial as Ray has it."""
        return new_trial(
            self._trainable, trial_id=trial_id, number=number, config=dict(config), **self._trial_arguments
        )

    def room(self) -> int:
        """How many more trials may be started."""
        return self.concurrency - self.active()

    def is_finished(self) -> bool:
        """Whether no further trial will come."""
        return not self.again and (self._finished or (self.limit is not None and self.number >= self.limit))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Passes a report on to the searcher."""
        self._values[trial_id] = result
        self.searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the searcher that a trial is over, with its last report also when it was paused before."""
        last = self._values.pop(trial_id, None)
        result = result or last
        value = (result or {}).get(self._metric)
        if error or not isinstance(value, int | float) or not math.isfinite(value):
            self.searcher.on_trial_complete(trial_id, error=True)
        else:
            self.searcher.on_trial_complete(trial_id, result=result)

    def save_to_dir(self, dirpath: str, **kwargs: Any) -> None:
        """Nothing: the study's log is its state."""


def trial_id_of(number: int) -> str:
    """The id of the number-th trial: five digits or more, so that ids sort like numbers."""
    return f"{number:05d}"
