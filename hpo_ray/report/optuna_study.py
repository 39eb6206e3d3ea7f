"""The trials of a study that can be compared, as an Optuna study in memory: what Optuna's plots and importances read.

Values at different resources are not comparable, so all are of one resource: the highest that enough trials reached.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from hpo_ray.report.theme import MOST_POINTS, escaped, thinned
from hpo_ray.trials import TrialRecord
from hpo_ray.view import count

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from hpo_ray.events import StudyStarted
    from hpo_ray.report.subject import Subject

FEWEST = 20
"""Trials that are enough at least: their best tenth are two."""
FEWEST_EACH = 5
"""Trials that are enough for each hyperparameter."""
_LOG_RATIO = 100.0
_MOST_CHOICES = 50
_LONGEST_NAME = 20


@dataclass(frozen=True, eq=False)
class Compared:
    """Trials with their values at one resource.

    Attributes:
        metric: whose values.
        mode: `min` or `max`.
        unit: what a unit of resource is called.
        resource: where the values were reported.
        highest: the highest resource with a value; of a population the highest before a configuration was changed.
        count: how many trials have a value at `resource`; `trials` are a sample where that is more than 2,000.
        enough: how many were wanted.
        trials: by number; those that failed are left out.
        values: theirs, finite.
        configs: theirs by dotted name, each value a scalar; of a population those that the trials began with.
        population: whether configurations were changed later on.
        started: the study's first event.
        known: the distributions of its space; empty if that is not known.
    """

    metric: str
    mode: str
    unit: str
    resource: int
    highest: int
    count: int
    enough: int
    trials: Sequence[TrialRecord]
    values: Sequence[float]
    configs: Sequence[Mapping[str, Any]]
    population: bool
    started: StudyStarted
    known: Mapping[str, BaseDistribution]

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def sign(self) -> int:
        """1 when less is better, -1 when more is."""
        return -1 if self.mode == "max" else 1

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Of each hyperparameter that has a value in some trial, by dotted name, what is in it as it stands.

        Where the space is not known, or a value lies outside of it, they are inferred from the values; a text that has
        more than 50 different ones, as a path or a name, is left out.
        """
        values: dict[str, list[Any]] = {}
        for config in self.configs:
            for name, value in config.items():
                values.setdefault(name, []).append(value)
        order = [*(name for name in self.known if name in values), *(name for name in values if name not in self.known)]
        told = {name: _distribution(self.known.get(name), values[name]) for name in order}
        return {name: found for name, found in told.items() if name in self.known or not _is_text(found)}

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The hyperparameters that differ between the trials, in the order of the space."""
        return tuple(
            name for name in self.distributions if len({config[name] for config in self.configs if name in config}) > 1
        )

    @cached_property
    def best_first(self) -> list[int]:
        """The indices of the trials, best value first; those that don't keep the constraints come last."""
        return sorted(
            range(len(self)),
            key=lambda i: (self.trials[i].feasible is False, self.sign * self.values[i], self.trials[i].number),
        )

    @cached_property
    def frozen(self) -> list[FrozenTrial]:
        """The trials as Optuna has them, all complete.

        Names and choices are escaped: Plotly takes `<b>` in them for markup.
        """
        from hpo_ray.store.contents import trial

        told = {escaped(name): _escaped(known) for name, known in self.distributions.items()}
        made = []
        for record, value, config in zip(self.trials, self.values, self.configs, strict=True):
            same = record.resource == self.resource  # of constraints, only what was reported there is known
            plain = TrialRecord(record.trial_id, record.number, {}, "completed", value, self.resource)
            plain.metrics = record.metrics if same else {}
            started = replace(self.started, metrics={}, constraints=self.started.constraints if same else {})
            known = {name: value for name, value in config.items() if name in self.distributions}
            params = {escaped(name): _choice(value, self.distributions[name]) for name, value in known.items()}
            made.append(trial(plain, params, started, (0.0, 0.0), None, told))
        return made

    @cached_property
    def study(self) -> Study:
        """All of it as a study of Optuna."""
        return study_of(self, self.frozen)

    @property
    def said(self) -> str:
        """Which trials these are, as a sentence."""
        which = f"{count(self.count, 'trial')} at {self.unit} {self.resource}"
        if self.population:
            which = f"The configurations that {count(self.count, 'member')} began with, at {self.unit} {self.resource}"
            which += f", before the first was changed at {self.unit} {self.highest}" * (self.resource < self.highest)
        elif self.resource < self.highest:
            which += f", the highest that at least {self.enough} have reached" * (self.count >= self.enough)
            which += f"; some went on to {self.unit} {self.highest}"
        if len(self) < self.count:
            which += f"; drawn from {len(self)} of them, evenly chosen"
        return f"{which}."


_made: WeakKeyDictionary[Subject, dict[str, Compared | None]] = WeakKeyDictionary()


def compared(subject: Subject, metric: str | None = None) -> Compared | None:
    """The trials of a study that can be compared; made once for each study and metric.

    They are those with a value at the highest resource that at least 20 of them, and 5 for each hyperparameter, have
    reached; where none has that many, at the resource with the most. A trial that went further counts with what it had
    reported there. In a population the configurations change, so the trials count with those that they began with, at
    a resource before the first was changed.

    Args:
        subject: the study.
        metric: one of its metrics; by default the one that it optimises.

    Returns:
        None if no trial has a value.
    """
    of_subject = _made.setdefault(subject, {})
    metric = subject.started.metric if metric is None else metric
    if metric not in of_subject:
        of_subject[metric] = _compare(subject, metric)
    return of_subject[metric]


def study_of(compared: Compared, trials: Sequence[FrozenTrial]) -> Study:
    """Some of the trials as a study of Optuna, which optimises the one metric."""
    import optuna

    with quiet():
        study = optuna.create_study(direction="maximize" if compared.mode == "max" else "minimize")
        study.add_trials(trials)
    return study


@contextmanager
def quiet() -> Iterator[None]:
    """Within it neither warnings of experimental features nor Optuna's log reach anybody."""
    import optuna

    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(logging.CRITICAL)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)


def shown(name: str) -> str:
    """A name for a figure: escaped, and shortened in its middle where it would take the room of a phone."""
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2 - 1]}…{name[-_LONGEST_NAME // 2 :]}"
    return escaped(name)


def _compare(subject: Subject, metric: str) -> Compared | None:
    trials = [trial for trial in subject.trials if trial.state != "failed"]
    changes = [entry[0] for trial in trials for entry in (trial.schedule or [])[1:]]
    curves = [_curve(subject, trial, metric, min(changes, default=None)) for trial in trials]
    reached = Counter(resource for curve in curves for resource in curve)
    if not reached:
        return None
    given = {trial.number: subject.config_of(trial) for trial in trials} | (_initial(subject) if changes else {})
    configs = {number: {name: _plain(v) for name, v in config.items()} for number, config in given.items()}
    enough = max(FEWEST, FEWEST_EACH * _width(list(configs.values())))
    highest = max(reached)
    resource = max(reached, key=lambda r: (min(reached[r], enough), r))
    there = [i for i, curve in enumerate(curves) if resource in curve]
    best = min(there, key=lambda i: subject.sign * curves[i][resource])
    chosen = sorted({there[i] for i in thinned(len(there), MOST_POINTS - 1)} | {best})
    mode = subject.started.metrics.get(metric, subject.started.mode)
    return Compared(
        metric,
        mode,
        subject.unit,
        resource,
        highest,
        len(there),
        enough,
        [trials[i] for i in chosen],
        [curves[i][resource] for i in chosen],
        [configs[trials[i].number] for i in chosen],
        bool(changes),
        subject.started,
        _known(subject),
    )


def _curve(subject: Subject, trial: TrialRecord, metric: str, until: int | None) -> dict[int, float]:
    """The finite values of a trial by resource; of other metrics than the study's own only the last is kept."""
    if metric != subject.started.metric:
        value = trial.metrics.get(metric)
        known = isinstance(value, int | float) and math.isfinite(value) and until is None
        return {trial.resource: float(value)} if known and value is not None else {}
    curve: dict[int, float] = {}
    for resource, value in trial.history:
        if math.isfinite(value) and (until is None or (resource <= until and resource not in curve)):
            curve[resource] = value
    return curve


def _initial(subject: Subject) -> dict[int, dict[str, Any]]:
    """What each trial began with, by number."""
    from hpo_ray.events import TrialAdded
    from hpo_ray.trials import flat

    return {event.number: flat(event.config) for event in subject.events if isinstance(event, TrialAdded)}


def _width(configs: Sequence[Mapping[str, Any]]) -> int:
    """How many hyperparameters differ."""
    values: dict[str, set[Any]] = {}
    for config in configs:
        for name, value in config.items():
            values.setdefault(name, set()).add(value)
    return sum(len(different) > 1 for different in values.values())


def _known(subject: Subject) -> Mapping[str, BaseDistribution]:
    from hpo_ray.store.contents import distributions

    return {} if subject.space is None else distributions(subject.space)


def _plain(value: Any) -> Any:
    """A value of any log as a scalar."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _distribution(known: BaseDistribution | None, values: Sequence[Any]) -> BaseDistribution:
    """The known one if it has all these values, otherwise what they look like."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if known is not None and all(_contains(known, value) for value in values):
        return known
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values) or any(abs(number) > 1e15 for number in numbers):  # those may not be told apart
        return CategoricalDistribution(list({(type(value), value): value for value in values}.values()))
    low, high = min(numbers), max(numbers)
    log = low > 0 and high / low >= _LOG_RATIO
    if all(isinstance(number, int) for number in numbers):
        return IntDistribution(int(low), int(high), log)
    return FloatDistribution(float(low), float(high), log)


def _is_text(found: BaseDistribution) -> bool:
    from optuna.distributions import CategoricalDistribution

    return isinstance(found, CategoricalDistribution) and len(found.choices) > _MOST_CHOICES


def _contains(known: BaseDistribution, value: Any) -> bool:
    from optuna.distributions import CategoricalDistribution

    if isinstance(known, CategoricalDistribution):
        return value in known.choices
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return bool(known._contains(value))


def _escaped(known: BaseDistribution) -> BaseDistribution:
    """A distribution whose choices are escaped where they are text."""
    from optuna.distributions import CategoricalDistribution

    if not isinstance(known, CategoricalDistribution):
        return known
    return CategoricalDistribution([escaped(c) if isinstance(c, str) else c for c in known.choices])


def _choice(value: Any, known: BaseDistribution) -> Any:
    """A value as the escaped distribution has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(known, CategoricalDistribution):
        return escaped(value) if isinstance(value, str) else value
    return float(value) if isinstance(known, FloatDistribution) else value
