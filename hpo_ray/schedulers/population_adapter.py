"""Population-based training as Ray Tune knows it: copies checkpoints between trials and changes configurations."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ray.tune import Checkpoint
from ray.tune.experiment import Trial

from hpo_ray.executors.internals import begin_anew, copy_checkpoint, last_metrics
from hpo_ray.schedulers.adapter import CoreScheduler
from hpo_ray.schedulers.core import Clone
from hpo_ray.schedulers.explore import FACTORS
from hpo_ray.schedulers.pb2 import PB2Core
from hpo_ray.schedulers.population import PBTCore, PBTReplayCore
from hpo_ray.space import Space


@dataclass(frozen=True)
class Change:
    """What is different about a trial that goes on.

    Attributes:
        action: `exploit` or `replay`.
        config: its configuration from now on.
        resource: that of the checkpoint that it goes on from.
        metrics: what was reported there, where the checkpoint is another trial's.
        checkpoint: the trial's own copy of that; None where it is its own anyway.
    """

    action: str
    config: Mapping[str, Any]
    resource: int
    metrics: Mapping[str, Any] | None = None
    checkpoint: Checkpoint | None = None


class PopulationScheduler(CoreScheduler):
    """A scheduler whose algorithm lets trials go on as clones. Arguments: see `CoreScheduler`."""

    def __init__(
        self,
        core: PBTCore | PBTReplayCore,
        metric: str | None,
        mode: str | None,
        time_attr: str,
        on_missing_checkpoint: str,
    ) -> None:
        super().__init__(core, metric, mode, time_attr, on_missing_checkpoint)
        self._changes: dict[str, Change] = {}
        if not getattr(core, "synchronous", True):
            self.room = self._one_at_a_time

    def change(self, trial_id: str) -> Change | None:
        """What is different about a trial that was just let go on; tells it once."""
        return self._changes.pop(trial_id, None)

    def _can_start(self, trial: Trial) -> bool:
        """Not while the checkpoint that it is to copy is being written."""
        clone = self.fold.promoted.get(trial.trial_id)
        source = None if clone is None else self._trials.get(clone.source)
        return super()._can_start(trial) and (source is None or not source.is_saving)

    def _prepare(self, trial: Trial, clone: Clone | None) -> None:
        if clone is None:
            return
        change, why_not = self._replay(trial, clone) if clone.source == trial.trial_id else self._exploit(trial, clone)
        if change is None:
            self.fold.reasons[trial.trial_id] += f"; goes on as it is: {why_not}"
            return
        trial.set_config(copy.deepcopy(dict(clone.config)))
        loss = None if change.metrics is None else self._loss(change.metrics)
        self.fold.cloned(trial.trial_id, clone, clone.config, change.resource, loss)
        self._changes[trial.trial_id] = change

    def _replay(self, trial: Trial, clone: Clone) -> tuple[Change, str]:
        metrics = last_metrics(trial) or {}
        begin_anew(trial)
        return Change("replay", clone.config, int(metrics.get(self._time_attr, 0))), ""

    def _exploit(self, trial: Trial, clone: Clone) -> tuple[Change | None, str]:
        """Copies the other trial's checkpoint; without one that fits, says why."""
        source = self._trials.get(clone.source)
        if source is None or source.is_finished():
            return None, "the other is over"
        metrics = last_metrics(source)
        if metrics is None or self._time_attr not in metrics or self._metric not in metrics:
            return None, "the other has no checkpoint"
        resource = int(metrics[self._time_attr])
        if source.config != clone.source_config or resource >= self.core.max_resource:
            return None, "the other has changed since"
        checkpoint = copy_checkpoint(source, trial)
        if checkpoint is None:
            return None, "the other's checkpoint is gone"
        return Change("exploit", clone.config, resource, metrics, checkpoint), ""

    def _forget(self, trial: Trial) -> None:
        super()._forget(trial)
        self._changes.pop(trial.trial_id, None)


class PBT(PopulationScheduler):
    """Population-based training (Jaderberg et al. 2017).

    `population` trials train side by side. Every `interval` units each is compared with the others: one among the last
    `quantile` copies the weights and the optimizer's state of one among the first, and explores from its configuration.
    The new configuration is applied after the copy was loaded. What it finds is not one configuration but a schedule,
    which `PBTReplay` trains another model by.

    Asynchronously (the default) a trial is decided about when a worker is free for it, and nobody waits for the
    slowest; trials are compared at the last interval point that at least half of them have reached, so that none wins
    by having trained for longer. Synchronously all are decided about at once.

    Where Ray's `PopulationBasedTraining` differs: it lets values drift out of the bounds that they were drawn from, and
    rounds integers, so that 1 and 2 never move.

    Args:
        space: what is explored; configurations must come from it.
        max_resource: where a trial stops, in whole units of `time_attr`.
        population: trials. At least 4.
        interval: units of training between two decisions; a report that steps over counts.
        quantile: which share of the population is replaced, and copied, at most a half; rounded up to whole trials.
        factors: two numbers, one of which a number is multiplied by, one below 1 and one above it.
        resample_probability: how often a value is drawn from its whole domain instead.
        crossover: how often a value comes from a second trial among the first, before it is explored.
        synchronous: whether all wait for all.
        frozen: dotted names that are copied and never explored: those that shape the model. Names that are not in the
            space are passed over.
        seed: of copying and exploring.
        metric: see `CoreScheduler`.
        mode: see `CoreScheduler`.
        time_attr: see `CoreScheduler`.
        on_missing_checkpoint: see `CoreScheduler`.

    Raises:
        ConfigError: a number is out of its range, or the space can't be explored.
    """

    Core: ClassVar = PBTCore

    def __init__(
        self,
        space: Space,
        max_resource: int,
        population: int = 8,
        interval: int = 3,
        quantile: float = 0.25,
        factors: Sequence[float] = FACTORS,
        resample_probability: float = 0.25,
        crossover: float = 0.0,
        synchronous: bool = False,
        frozen: Sequence[str] = (),
        seed: int = 0,
        metric: str | None = None,
        mode: str | None = None,
        time_attr: str = "training_iteration",
        on_missing_checkpoint: str = "error",
    ) -> None:
        core = PBTCore(
            space,
            max_resource,
            population,
            interval,
            quantile,
            factors,
            resample_probability,
            crossover,
            synchronous,
            frozen,
            seed,
        )
        super().__init__(core, metric, mode, time_attr, on_missing_checkpoint)


class PB2(PopulationScheduler):
    """Population-based bandits (Parker-Holder, Nguyen and Roberts, NeurIPS 2020).

    As `PBT`, but the numbers of a trial that has copied another one are those where a Gaussian process expects the most
    of the next interval: of how much the loss falls, over time and hyperparameters, and where others don't try already.
    Choices, which the process doesn't model, change as in `PBT`. As long as fewer than two intervals have been
    observed, numbers are drawn at random. Ray's `PB2` has the same kernel, but knows neither logarithms nor integers
    nor choices.

    Args:
        space: see `PBT`; at least one number must be free.
        max_resource: see `PBT`.
        population: see `PBT`.
        interval: see `PBT`.
        quantile: see `PBT`.
        resample_probability: how often a choice is drawn from all of its choices.
        synchronous: see `PBT`.
        frozen: see `PBT`.
        seed: see `PBT`.
        metric: see `CoreScheduler`.
        mode: see `CoreScheduler`.
        time_attr: see `CoreScheduler`.
        on_missing_checkpoint: see `CoreScheduler`.

    Raises:
        ConfigError: a number is out of its range, or the space can't be explored.
    """

    Core: ClassVar = PB2Core

    def __init__(
        self,
        space: Space,
        max_resource: int,
        population: int = 8,
        interval: int = 3,
        quantile: float = 0.25,
        resample_probability: float = 0.25,
        synchronous: bool = False,
        frozen: Sequence[str] = (),
        seed: int = 0,
        metric: str | None = None,
        mode: str | None = None,
        time_attr: str = "training_iteration",
        on_missing_checkpoint: str = "error",
    ) -> None:
        core = PB2Core(
            space, max_resource, population, interval, quantile, resample_probability, synchronous, frozen, seed
        )
        super().__init__(core, metric, mode, time_attr, on_missing_checkpoint)


class PBTReplay(PopulationScheduler):
    """Trains one model by the schedule of the best trial that a population found.

    The trial is paused where the schedule has another configuration, and goes on with it from its own checkpoint, as
    the population's trials did. A trainable whose numbers depend on its configuration and its checkpoint alone gives
    the values of the population again. One that also draws from its trial's seed starts with other weights, unless the
    schedule began with trial 0 and the study has the same seed; from then on the states of its generators are in the
    checkpoints, as those of the population's were.

    Args:
        space: what the configurations must lie in.
        max_resource: where the trial stops, in whole units of `time_attr`.
        path: the folder of the study whose best trial is replayed.
        metric: see `CoreScheduler`.
        mode: see `CoreScheduler`.
        time_attr: see `CoreScheduler`.
        on_missing_checkpoint: see `CoreScheduler`.

    Raises:
        ConfigError: there is no such study, or it holds no schedule in this space.
    """

    Core: ClassVar = PBTReplayCore

    def __init__(
        self,
        space: Space,
        max_resource: int,
        path: str | None = None,
        metric: str | None = None,
        mode: str | None = None,
        time_attr: str = "training_iteration",
        on_missing_checkpoint: str = "error",
    ) -> None:
        super().__init__(PBTReplayCore(space, max_resource, path), metric, mode, time_attr, on_missing_checkpoint)
