"""The searchers as Ray Tune knows them: one thin adapter over the cores, and a class for each of these."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ray.tune.search import Searcher

from hpo_ray.events import Event, Reported, TrialAdded, TrialEnded
from hpo_ray.pareto import violations
from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.searchers.core import SearcherCore
from hpo_ray.searchers.differential_evolution import DECore
from hpo_ray.searchers.evolution import EvolutionCore
from hpo_ray.searchers.grid import GridCore
from hpo_ray.searchers.optuna import OptunaCore
from hpo_ray.searchers.random import RandomCore
from hpo_ray.searchers.schedule import ScheduleCore
from hpo_ray.searchers.sobol import SobolCore
from hpo_ray.space import Space


class SpaceSearcher(Searcher):  # type: ignore[misc]  # ray ships no types
    """A `SearcherCore` behind Ray Tune's searcher interface. A subclass names its `Core`.

    In a `ray.tune.Tuner` of your own it respects `max_concurrent_trials`, counting only trials that run or are about
    to: a scheduler of ours tells it which trials are paused. Ray's own limiter counts these too, and a scheduler
    that waits for a rung to fill then waits for ever. In a study it follows the study's log instead of Ray's
    callbacks, so that the log alone gives its state again.

    Args:
        space: what to search.
        metric: name of the metric; by default the one given to `TuneConfig`.
        mode: `min` or `max`; by default the one given to `TuneConfig`.
        time_attr: name of the reported value that counts resource.
        seed: the study's seed. Same seed, same suggestions.
        initial: known configurations to suggest first. Fixed values may be left out.
        ladder: the resources at which the scheduler compares trials, `Hyperband(max_resource=81).ladder`; without it
            only values at the highest resource that any trial has reached count as final.
        of_core: arguments of the core.

    Raises:
        ConfigError: a configuration of `initial` does not lie in the space, or the searcher can't do the space.
    """

    Core: ClassVar[type[SearcherCore]]

    def __init__(
        self,
        space: Space,
        metric: str | None = None,
        mode: str | None = None,
        time_attr: str = "training_iteration",
        seed: int = 0,
        initial: Sequence[Mapping[str, Any]] = (),
        ladder: Ladder | None = None,
        **of_core: Any,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._metric: str | None = metric
        self._mode: str | None = mode
        self._time_attr = time_attr
        self.space = space
        self.core = self.Core(space, seed=seed, initial=initial, ladder=ladder, **of_core)
        self.core.prepare()
        self.metrics: Mapping[str, str] = of_core.get("metrics") or {}
        self.constraints: Mapping[str, Mapping[str, float]] = of_core.get("constraints") or {}
        self.follows_log = False
        """Whether it hears of trials through `observe`, and not through Ray's callbacks."""
        self._numbers: dict[str, int] = {}
        """Of the trials that have not ended."""
        self._tags: dict[str, Mapping[str, Any]] = {}
        self._number = 0
        self._active: set[str] = set()
        self._max_active: int | None = None

    def __init_subclass__(cls) -> None:
        """Gives the class a signature that names the settings of its core."""
        super().__init_subclass__()
        own = inspect.signature(SpaceSearcher.__init__).parameters
        extra = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(cls.Core.__init__).parameters.items()
            if name not in own
        ]
        kept = [parameter for name, parameter in own.items() if name not in ("self", "of_core")]
        cls.__signature__ = inspect.Signature([*kept, *extra])

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next configuration; None while as many trials are active as may be, FINISHED when there are no more."""
        if not self.has_room():
            return None
        proposal = self.core.suggest(self._number)
        if proposal is None:
            return str(Searcher.FINISHED)
        number, self._number = self._number, self._number + 1
        self._tags[trial_id] = proposal.tags
        self._active.add(trial_id)
        if not self.follows_log:
            self._numbers[trial_id] = number
            self.core.add(number, proposal.config, proposal.tags)
        return dict(proposal.config)

    def tags(self, trial_id: str) -> Mapping[str, Any]:
        """What the searcher says of a trial that has not ended: generation, parents."""
        return self._tags.get(trial_id, {})

    def observe(self, event: Event) -> None:
        """Takes the next event of a study's log into account."""
        if isinstance(event, TrialAdded):
            self._numbers[event.trial_id] = event.number
            self._number = max(self._number, event.number + 1)
            self.core.add(event.number, event.config, event.tags)
        elif isinstance(event, Reported):
            self._report(event.trial_id, event.resource, event.metrics)
        elif isinstance(event, TrialEnded):
            self._end(event.trial_id, event.state)

    def explain(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the searcher's model says of a configuration; a predicted mean in the metric's own sign."""
        told = dict(self.core.explain(config))
        if "mean" in told and self._mode == "max":
            told["mean"] = -told["mean"]
        return told

    def has_room(self) -> bool:
        """Whether another trial may be active."""
        return self._max_active is None or len(self._active) < self._max_active

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial has reported."""
        if not self.follows_log and self._time_attr in result:
            self._report(trial_id, int(result[self._time_attr]), result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial is over. `result` is None when it was stopped while it was paused."""
        self._active.discard(trial_id)
        if self.follows_log or trial_id not in self._numbers:
            return
        finite = True
        if result and self._time_attr in result:
            finite = self._report(trial_id, int(result[self._time_attr]), result)
        trial = self.core.trials.get(self._numbers[trial_id])
        full = self.core.ladder.full if self.core.ladder is not None else 0
        state = "completed" if trial is not None and result is not None and trial.resource >= full else "stopped"
        self._end(trial_id, "failed" if error or not finite else state)

    def on_pause(self, trial_id: str) -> None:
        """A scheduler of ours paused the trial."""
        self._active.discard(trial_id)

    def on_unpause(self, trial_id: str) -> None:
        """A scheduler of ours promoted the trial."""
        self._active.add(trial_id)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Takes metric and mode from `TuneConfig`; False if Tune brings a search space of its own."""
        if config:
            return False
        self._metric = self._metric or metric
        self._mode = self._mode or mode
        return True

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Takes the limit over from Ray's `ConcurrencyLimiter`."""
        self._max_active = max_concurrent
        return True

    def save(self, checkpoint_path: str) -> None:
        """Writes what it has heard, as JSON."""
        state = {
            "number": self._number,
            "numbers": self._numbers,
            "active": sorted(self._active),
            "journal": self.core.journal,
        }
        Path(checkpoint_path).write_text(json.dumps(state))

    def restore(self, checkpoint_path: str) -> None:
        """Hears again what `save` wrote; for a searcher that is fresh."""
        state = json.loads(Path(checkpoint_path).read_text())
        self._number, self._numbers, self._active = state["number"], state["numbers"], set(state["active"])
        self.core.replay(state["journal"])

    def _report(self, trial_id: str, resource: int, metrics: Mapping[str, Any]) -> bool:
        """Hands a report to the core; False if it has a value that is not finite, which ends the trial as failed."""
        if not self.core.learns or trial_id not in self._numbers:
            return True
        losses = []
        for name, mode in (self.metrics or {str(self._metric): str(self._mode)}).items():
            value = metrics.get(name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                return False
            losses.append(-float(value) if mode == "max" else float(value))
        self.core.report(self._numbers[trial_id], resource, losses, violations(self.constraints, metrics))
        return True

    def _end(self, trial_id: str, state: str) -> None:
        self._active.discard(trial_id)
        self._tags.pop(trial_id, None)
        number = self._numbers.pop(trial_id, None)
        if number is not None:
            self.core.end(number, state)


class RandomSearcher(SpaceSearcher):
    """Draws each configuration from the space: uniform, log-uniform, conditions honoured.

    The number-th configuration depends on the seed and the number alone.

    Args:
        middle_first: whether the first is the middle of all domains, of log domains the geometric one. Others:
            `SpaceSearcher`.
    """

    Core = RandomCore


class SobolSearcher(SpaceSearcher):
    """Points of a scrambled Sobol sequence, which fill the space more evenly than random ones.

    Args:
        scramble: whether the sequence is scrambled, so that another seed gives other points. Others: `SpaceSearcher`.
    """

    Core = SobolCore


class GridSearcher(SpaceSearcher):
    """Every combination of all choices and of some values of each range.

    Args:
        grid_points: how many values of each range, from one bound to the other (evenly on the logarithmic scale with
            `log`); a mapping gives them by name, 3 for those that it leaves out.
        sample: draw points of the grid at random, each at most once, instead of going through all. Others:
            `SpaceSearcher`.
    """

    Core = GridCore


class OptunaSearcher(SpaceSearcher):
    """A sampler of Optuna, asked and told: TPE, Gaussian processes, CMA-ES, NSGA-II.

    It never mixes values of different resources: under a scheduler with rungs each has a private study of its own, and
    suggestions come from the highest with enough results (Ray's `OptunaSearch` tells a trial that ASHA stopped early as
    finished, with its value at low resource). Every sampler takes every space: CMA-ES sees it as a cube, in which an
    unordered choice has a coordinate for each of its values.

    Args:
        sampler: `TPESampler`, `GPSampler`, `CmaEsSampler`, `NSGAIISampler` or `NSGAIIISampler`.
        settings: arguments of the sampler, by their names in Optuna.
        startup: results before TPE or the Gaussian process make suggestions, until then they are random; by default
            10 where trials are compared at one resource, otherwise the number of hyperparameters + 2.
        random_fraction: how many of the configurations are drawn at random all the same, from 0 to below 1.
        metrics: for several metrics, `min` or `max` by name; empty: `metric` alone.
        constraints: bounds that a trial has to keep, `{metric: {low: 0.9}}`, `high`, or both. Others: `SpaceSearcher`.
    """

    Core = OptunaCore


class EvolutionSearcher(SpaceSearcher):
    """A genetic algorithm: children of good configurations, which mix their parents and differ a little.

    Its numbers live on the unit interval of each range (its logarithm with `log`); ordered choices are numbers, too.
    Unordered ones come from either parent, and mutate to any other.

    Args:
        population: trials of a generation, at least 4.
        elites: so many of the best trials of all generations are always among the parents.
        tournament: each parent is the best of so many that are drawn.
        crossover: how numbers of two parents are mixed: `sbx`, near one of them (simulated binary crossover); `blx`,
            anywhere between them and a little beyond (BLX-alpha); `uniform`, one of the two; `none`, one parent only.
        crossover_probability: of a child to have two parents.
        eta_c: of `sbx`; the larger, the nearer to its parents a child is.
        alpha: of `blx`; how far beyond, as a factor of the parents' distance.
        mutation: how a value changes: `gaussian`, `polynomial`, or `uniform`, to any value.
        mutation_probability: of each active value to change; None for one of them on average.
        sigma: of `gaussian`; standard deviation as a part of the range.
        eta_m: of `polynomial`; the larger, the less a value changes. Others: `SpaceSearcher`.
    """

    Core = EvolutionCore


class DESearcher(SpaceSearcher):
    """Differential evolution, with one population for each resource at which the scheduler compares: DE and DEHB.

    Args:
        strategy: `rand1bin` moves a random member by the difference of two others, `best1bin` the best one.
        f: how far, as a factor of the difference.
        cr: crossover rate: the part of a configuration that changes.
        population: members, at least 4, of the lowest resource if there are several, and then the others have in
            proportion; None for 10, or as many as Hyperband brings to each resource. Others: `SpaceSearcher`.
    """

    Core = DECore


class ScheduleSearcher(SpaceSearcher):
    """Proposes what the best trial of a population began with; the scheduler `PBTReplay` brings the rest.

    Args:
        path: the folder of the study whose best trial is replayed. Others: `SpaceSearcher`.

    Raises:
        ConfigError: there is no such study, or it holds no schedule in this space.
    """

    Core = ScheduleCore
