"""Optuna's samplers as searchers: Bayesian optimisation (TPE, Gaussian processes), CMA-ES, NSGA-II.

The samplers see one kind of value only: what trials have reached at one resource. For each resource at which the
scheduler compares trials there is a private study in memory, and a suggestion comes from the one of the highest
resource that has enough results, as in BOHB (Falkner, Klein and Hutter, "BOHB: Robust and Efficient Hyperparameter
Optimization at Scale", ICML 2018, section 3). In such a study a trial that got there is COMPLETE with its value there.
Where trials are compared at full resource only, one that was stopped before is PRUNED with its curve. What failed is
FAIL.

A sampler is made afresh for each suggestion, seeded by the study's seed and the suggestion's number.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.searchers.core import Observation, Proposal, SearcherCore
from hpo_ray.space import Categorical, Domain, Fixed, Float, Int, Scalar, Space
from hpo_ray.trainables.context import SEARCHER, stream

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

STARTUP = 10
"""Results before the first suggestion of a model, where trials are compared at one resource: Optuna's own default."""


@dataclass(frozen=True)
class _Traits:
    """How a sampler is spoken to.

    Attributes:
        names: `active`: it is asked for the active names only; `all`: for inactive ones, too; `cube`: for coordinates
            of the unit cube, an unordered choice having one for each value, of which the largest wins.
        stateful: it keeps its state in the trials that it was asked for, so a history can only be replayed by asking
            again. Otherwise trials can be told that were never asked for.
        several: it takes several metrics.
        constraints: it takes constraints.
    """

    names: str
    stateful: bool
    several: bool = False
    constraints: bool = False


_TRAITS = {
    "TPESampler": _Traits("active", stateful=False, several=True, constraints=True),
    "GPSampler": _Traits("all", stateful=False, several=True, constraints=True),
    # Optuna's draws choices at random, whatever it has learned.
    "CmaEsSampler": _Traits("cube", stateful=True),
    "NSGAIISampler": _Traits("all", stateful=True, several=True, constraints=True),
    "NSGAIIISampler": _Traits("all", stateful=True, several=True, constraints=True),
}


@dataclass
class _Level:
    """The study of one resource.

    Attributes:
        resource: None where no ladder says what full resource is.
        running: trials that were suggested from it and have no result there; numbers in the study.
        results: how many are COMPLETE.
    """

    resource: int | None
    study: optuna.Study
    running: dict[int, int] = field(default_factory=dict)
    results: int = 0


class OptunaCore(SearcherCore):
    """A sampler of Optuna. See `hpo_ray.searchers.OptunaSearcher`."""

    def __init__(
        self,
        space: Space,
        seed: int = 0,
        initial: Sequence[Mapping[str, Any]] = (),
        ladder: Ladder | None = None,
        sampler: str = "TPESampler",
        settings: Mapping[str, Any] | None = None,
        startup: int | None = None,
        random_fraction: float = 0.0,
        metrics: Mapping[str, str] | None = None,
        constraints: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        super().__init__(space, seed, initial, ladder)
        if sampler not in _TRAITS:
            raise ConfigError(
                f"searcher.sampler={sampler}: must be a sampler of Optuna that can be asked and told, one of "
                f"{', '.join(_TRAITS)}",
                key="searcher.sampler",
            )
        number = isinstance(random_fraction, int | float) and not isinstance(random_fraction, bool)
        if not number or not 0.0 <= random_fraction < 1.0:
            raise ConfigError(
                f"searcher.random_fraction={random_fraction}: must be from 0 to below 1, the share of configurations "
                f"drawn at random",
                key="searcher.random_fraction",
            )
        if startup is not None and (not isinstance(startup, int) or isinstance(startup, bool) or startup < 1):
            raise ConfigError(
                f"searcher.startup={startup!r}: must be a whole number >= 1, or null", key="searcher.startup"
            )
        if settings is not None and not isinstance(settings, Mapping):
            raise ConfigError(
                f"searcher.settings={settings!r}: must be a mapping, arguments of {sampler} by name",
                key="searcher.settings",
            )
        self.sampler = sampler
        self.settings = dict(settings or {})
        if (population := self.settings.get("population_size", 4)) < 4:
            raise ConfigError(
                f"searcher.settings.population_size={population}: must be at least 4, to have two pairs of parents",
                key="searcher.settings.population_size",
            )
        self.random_fraction = random_fraction
        self.traits = _TRAITS[sampler]
        self.metrics = dict(metrics or {})
        self.constraints = dict(constraints or {})
        for key, wanted, can in (
            ("metrics", self.metrics, self.traits.several),
            ("constraints", self.constraints, self.traits.constraints),
        ):
            if wanted and not can:
                able = [name for name, traits in _TRAITS.items() if getattr(traits, _ABLE[key])]
                raise ConfigError(
                    f"task.{key}={wanted}: {sampler} takes none; use searcher.sampler={' or '.join(able)}",
                    key=f"task.{key}",
                )
        several = ladder is not None and len(ladder.resources) > 1
        free = sum(not isinstance(domain, Fixed) for domain in space.domains.values())
        # With several resources one more than BOHB's N_min = d + 1, which is what a density in d dimensions takes.
        self.startup = startup if startup is not None else free + 2 if several else STARTUP
        self._levels: dict[int | None, _Level] = {}
        self._asked: dict[int, tuple[_Level, optuna.Trial, dict[str, Any]]] = {}
        self._highest = 0

    def prepare(self) -> None:
        """Imports Optuna and makes a sampler.

        Raises:
            ConfigError: the sampler needs a package that is not installed, or doesn't take one of its settings.
        """
        try:
            self._make_sampler(0)
        except ImportError as error:
            raise ConfigError(
                f"searcher.sampler={self.sampler}: needs a package that is not installed: {error}",
                key="searcher.sampler",
            ) from None
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"searcher.settings={self.settings}: {self.sampler} refuses them: {error}", key="searcher.settings"
            ) from None

    def propose(self, number: int) -> Proposal:
        """The sampler's suggestion, from the highest resource with enough results."""
        if self.random_fraction:
            rng = self.rng(number)
            if rng.random() < self.random_fraction:
                return Proposal(self.space.sample(rng))
        if number not in self._asked:
            level = self._model()
            trial, config = self._ask(level, number)
            if not self.traits.stateful:
                level.study.tell(trial, state=_state("FAIL"))
                return Proposal(config, self._tags(level))
            self._asked[number] = level, trial, config
        level, _, config = self._asked[number]
        return Proposal(dict(config), self._tags(level))

    def added(self, trial: Observation) -> None:
        """From now on the samplers know that it runs."""
        if self.traits.stateful:
            if trial.number >= len(self.initial):
                self.propose(trial.number)  # as it was asked for when this history was made
            asked = self._asked.get(trial.number)
            if asked is None or asked[2] == trial.config:
                return
            asked[0].study.tell(asked[1], state=_state("FAIL"))
            del self._asked[trial.number]
            return
        import optuna

        level = self._level(trial.tags["model"]) if "model" in trial.tags else self._model()
        level.study.add_trial(
            optuna.trial.create_trial(
                state=_state("RUNNING"), params=self._params(trial.config), distributions=self._of(trial.config)
            )
        )
        level.running[trial.number] = len(level.study.get_trials(deepcopy=False)) - 1

    def reported(self, trial: Observation) -> None:
        """Records the trial at the resource that it has reached; one that it jumped over is not recorded."""
        if self.ladder is None:
            if trial.resource > self._highest:
                self._highest = trial.resource
                self._sort_again()
            return
        before = max((r for r in trial.curve if r < trial.resource), default=0)
        reached = [r for r in self.ladder.resources if before < r <= trial.resource]
        if not reached:
            return
        self._complete(self._level(reached[-1]), trial)
        if not self.traits.stateful:  # a suggestion of a higher resource is answered for now by what it has shown here
            self._forget_running(trial.number)

    def ended(self, trial: Observation) -> None:
        """Tells the samplers what became of it."""
        if trial.state == "completed" and trial.curve and self.ladder is not None:
            # It ended by itself: there is nothing left to train, so its last value is that of all resources above.
            for resource in self.ladder.resources:
                if resource > trial.resource:
                    self._complete(self._level(resource), trial)
        elif trial.state != "failed" and trial.curve and self._single:
            self._finish(trial)
        self._forget_running(trial.number)
        if (asked := self._asked.pop(trial.number, None)) is not None:
            asked[0].study.tell(asked[1], state=_state("FAIL"))

    def explain(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The sampler, the resource of its model, its results; of a Gaussian process also its prediction."""
        level = self._model()
        told = {"sampler": self.sampler, "resource": level.resource or self._highest, "results": level.results}
        if self.sampler == "GPSampler" and level.results >= self.startup and not self.metrics:
            told.update(self._predict(level, config))
        return told

    @property
    def _single(self) -> bool:
        """Whether trials are compared at one resource only."""
        return self.ladder is None or len(self.ladder.resources) == 1

    def _tags(self, level: _Level) -> Mapping[str, Any]:
        """Which model made a suggestion, if it was one."""
        return {"model": level.resource} if level.results >= self.startup and level.resource is not None else {}

    def _model(self) -> _Level:
        """The level of the highest resource with enough results; while there is none, the lowest."""
        if self.ladder is None:
            return self._level(None)
        for resource in reversed(self.ladder.resources):
            level = self._levels.get(resource)
            if level is not None and level.results >= self.startup:
                return level
        return self._level(self.ladder.resources[0])

    def _level(self, resource: int | None) -> _Level:
        if resource not in self._levels:
            import optuna

            directions = [optuna.study.StudyDirection.MINIMIZE] * max(1, len(self.metrics))
            with _quiet():
                study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=0))
            self._levels[resource] = _Level(resource, study)
        return self._levels[resource]

    def _make_sampler(self, number: int) -> BaseSampler:
        import optuna

        seed = int(stream(self.seed, SEARCHER, number).generate_state(1)[0])
        cls = getattr(optuna.samplers, self.sampler)
        settings = {"seed": seed, **self.settings}
        if self.sampler in ("TPESampler", "GPSampler"):
            settings.setdefault("n_startup_trials", self.startup)
        with _quiet():
            made: BaseSampler = cls(**settings)
        return made

    def _ask(self, level: _Level, number: int) -> tuple[optuna.Trial, dict[str, Any]]:
        level.study.sampler = self._make_sampler(number)
        try:
            with _quiet():
                trial = level.study.ask()
                return trial, self._suggested(trial)
        except Exception as error:  # of a sampler that takes a setting and can't work with it
            raise StudyError(
                f"searcher.settings={self.settings}: {self.sampler} raised {type(error).__name__}: {error}"
            ) from error

    def _suggested(self, trial: optuna.Trial) -> dict[str, Any]:
        """The configuration that the sampler gives this trial."""
        distributions = self._distributions
        if self.traits.names == "cube":
            return self._decode({name: trial.suggest_float(name, 0.0, 1.0) for name in distributions})
        flat: dict[str, Any] = {}
        for name in self.space.order:
            domain = self.space.domains[name]
            active = self.space.is_active(name, flat)
            if isinstance(domain, Fixed):
                if active:
                    flat[name] = domain.value
            elif active or self.traits.names == "all":
                value = self._suggest(trial, name, domain)
                if active:
                    flat[name] = value
        return self.space.nest(flat)

    def _suggest(self, trial: optuna.Trial, name: str, domain: Domain) -> Scalar:
        if isinstance(domain, Float) and domain.step is not None:
            points = domain.size or 1
            return domain.from_unit((trial.suggest_int(name, 0, points - 1) + 0.5) / points)
        if isinstance(domain, Float):
            return domain.coerce(trial.suggest_float(name, domain.low, domain.high, log=domain.log))
        if isinstance(domain, Int):
            return trial.suggest_int(name, domain.low, domain.high, step=domain.step or 1, log=domain.log)
        assert isinstance(domain, Categorical)
        return trial.suggest_categorical(name, domain.choices)

    @property
    def _distributions(self) -> dict[str, BaseDistribution]:
        if self._known_distributions is None:
            if self.traits.names == "cube":
                from optuna.distributions import FloatDistribution

                self._known_distributions = {name: FloatDistribution(0.0, 1.0) for name in self._coordinates()}
            else:
                from optuna.distributions import IntDistribution

                # A float on a grid is asked for by its place: Optuna's grids have rounding errors of their own.
                self._known_distributions = {
                    name: IntDistribution(0, (domain.size or 1) - 1)
                    if isinstance(domain := self.space.domains[name], Float) and domain.step is not None
                    else distribution
                    for name, distribution in self.space.to_optuna().items()
                }
        return self._known_distributions

    _known_distributions: dict[str, BaseDistribution] | None = None

    def _coordinates(self) -> Iterator[str]:
        for name, domain in self.space.domains.items():
            if _is_one_hot(domain):
                yield from (f"{name}={choice}" for choice in domain.choices)
            elif not isinstance(domain, Fixed):
                yield name

    def _decode(self, point: Mapping[str, float]) -> dict[str, Any]:
        """The configuration at a point of the cube."""
        units = []
        for name, domain in self.space.domains.items():
            if _is_one_hot(domain):
                largest = int(np.argmax([point[f"{name}={choice}"] for choice in domain.choices]))
                units.append((largest + 0.5) / len(domain.choices))
            else:
                units.append(point.get(name, 0.5))
        return self.space.from_units(units)

    def _params(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration as the sampler has it; names that are not active take their middle value."""
        flat = self.space.flatten(config)
        if self.traits.names == "cube":
            units = dict(zip(self.space.names, self.space.to_units(config), strict=True))
            point: dict[str, Any] = {}
            for name, domain in self.space.domains.items():
                if _is_one_hot(domain):
                    for choice in domain.choices:
                        point[f"{name}={choice}"] = 0.75 if name in flat and flat[name] == choice else 0.25
                elif not isinstance(domain, Fixed):
                    point[name] = units[name]
            return point
        params = {}
        for name in self._distributions:
            domain = self.space.domains[name]
            if name in flat or self.traits.names == "all":
                params[name] = value = flat[name] if name in flat else domain.from_unit(0.5)
                if isinstance(domain, Float) and domain.step is not None:
                    params[name] = int(domain.to_unit(value) * (domain.size or 1))
        return params

    def _of(self, config: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """The distributions of what `_params` gives."""
        return {name: self._distributions[name] for name in self._params(config)}

    def _complete(self, level: _Level, trial: Observation) -> None:
        """The trial has a value at the level's resource."""
        level.results += 1
        self._tell(level, trial, "COMPLETE")

    def _finish(self, trial: Observation) -> None:
        """A trial has ended where only full resource counts."""
        full = self.ladder.full if self.ladder is not None else self._highest
        level = self._level(self.ladder.full if self.ladder is not None else None)
        if self.ladder is not None and trial.resource >= full:
            return  # recorded when it reported
        if trial.resource >= full:
            self._complete(level, trial)
        else:
            self._tell(level, trial, "PRUNED")

    def _tell(self, level: _Level, trial: Observation, state: str) -> None:
        import optuna

        losses = list(trial.curve[trial.resource])
        beyond = {str(i): min(value, 1e300) for i, value in enumerate(trial.constraints)}
        curve = {} if len(losses) > 1 else {resource: values[0] for resource, values in trial.curve.items()}
        asked = self._asked.get(trial.number)
        if asked is not None and asked[0] is level:
            del self._asked[trial.number]
            for resource, value in curve.items():
                asked[1].report(value, resource)
            for name, value in beyond.items():
                asked[1].set_constraint(name, value)
            level.study.tell(asked[1], losses if state == "COMPLETE" else None, _state(state))
            return
        level.study.add_trial(
            optuna.trial.create_trial(
                state=_state(state),
                values=losses if state == "COMPLETE" else None,
                params=self._params(trial.config),
                distributions=self._of(trial.config),
                intermediate_values=curve,
                constraints=beyond,
            )
        )

    def _forget_running(self, number: int) -> None:
        for level in self._levels.values():
            if (running := level.running.pop(number, None)) is not None:
                level.study.tell(running, state=_state("FAIL"))

    def _sort_again(self) -> None:
        """A trial got further than all before: what was final until now has been stopped early, as it turns out."""
        if any(trial.state not in ("running", "failed") for trial in self.trials.values()):
            self._levels.pop(None, None)
            for trial in self.trials.values():
                if trial.state not in ("running", "failed") and trial.curve:
                    self._finish(trial)

    def _predict(self, level: _Level, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The posterior of Optuna's Gaussian process at a configuration, in the metric's own units.

        Optuna keeps the process to itself: where a version has moved it, only the names are told.
        """
        named = {"kernel": "Matern 5/2, a length scale for each hyperparameter", "acquisition": "log EI"}
        sampler: Any = self._make_sampler(len(self.trials))
        level.study.sampler = sampler
        with _quiet():
            trial = level.study.ask()
            self._suggested(trial)  # fits the process
            level.study.tell(trial, state=_state("FAIL"))
            try:
                import torch
                from optuna._gp.search_space import SearchSpace

                process = sampler._gprs_cache_list[0]
                complete = level.study.get_trials(deepcopy=False, states=(_state("COMPLETE"),))
                scores = -np.array([trial.values[0] for trial in complete])
                params = self._params(config)
                space = SearchSpace({name: self._distributions[name] for name in sorted(params)})
                (point,) = space.get_normalized_params([_frozen(params, self._of(config))])
                mean, variance = process.posterior(torch.from_numpy(point))
            except (ImportError, AttributeError, TypeError, ValueError):
                return named
        scale = float(scores.std()) or 1.0
        loss = -(float(mean) * scale + float(scores.mean()))
        return {**named, "mean": loss, "deviation": float(variance) ** 0.5 * scale}


_ABLE = {"metrics": "several", "constraints": "constraints"}


def _frozen(params: Mapping[str, Any], distributions: Mapping[str, Any]) -> Any:
    import optuna

    return optuna.trial.create_trial(params=dict(params), distributions=dict(distributions), value=0.0)


def _is_one_hot(domain: Domain) -> TypeGuard[Categorical]:
    """Whether a choice has a coordinate for each of its values: two of them are the two halves of one."""
    return isinstance(domain, Categorical) and not domain.ordered and len(domain.choices) > 2


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna without its warnings of experimental arguments, and without its lines about studies in memory."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter("ignore", FutureWarning)  # of each sampler that is made, which is one a suggestion
            yield
    finally:
        optuna.logging.set_verbosity(before)
